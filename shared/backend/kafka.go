package backend

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

const tryKafka = "is it running, and is KAFKA_BROKERS right (host:port, separated by commas)?"

// Kafka says where the brokers are and under which name we appear in their logs.
type Kafka struct {
	Brokers  []string
	ClientID string

	// TopicPrefix goes before the names of topics and groups, so that several installations can share brokers.
	TopicPrefix string
}

// Topic is the name on the brokers of what the catalog, or a consumer group, is called.
func (k Kafka) Topic(name string) string { return k.TopicPrefix + name }

// Where names the brokers.
func (k Kafka) Where() string { return strings.Join(k.Brokers, ",") }

func (k Kafka) String() string { return "kafka " + k.Where() }

// Check reaches a broker, any of them, within ctx's time.
func (k Kafka) Check(ctx context.Context) error {
	_, err := k.apiVersions(ctx)
	return err
}

// apiVersions asks the brokers in turn what they speak, until one answers.
func (k Kafka) apiVersions(ctx context.Context) (*sarama.ApiVersionsResponse, error) {
	problems := []error{}
	for _, address := range k.Brokers {
		response, err := k.askVersions(ctx, address)
		if err == nil {
			return response, nil
		}
		problems = append(problems, err)
	}
	if len(problems) == 0 {
		problems = append(problems, errors.New("no broker is named"))
	}
	return nil, unreachable("Kafka", k.Where(), tryKafka, errors.Join(problems...))
}

func (k Kafka) askVersions(ctx context.Context, address string) (*sarama.ApiVersionsResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	broker := sarama.NewBroker(address)
	if err := broker.Open(within(ctx, k.SaramaConfig())); err != nil {
		return nil, err
	}
	defer func() { _ = broker.Close() }() // it may not have been opened
	if _, err := broker.Connected(); err != nil {
		return nil, err
	}
	response, err := broker.ApiVersions(&sarama.ApiVersionsRequest{
		Version: 3, ClientSoftwareName: "edumatrix", ClientSoftwareVersion: "1"})
	if err == nil && response.ErrorCode != 0 {
		err = sarama.KError(response.ErrorCode)
	}
	return response, err
}

// within shortens what sarama, which takes no context, waits at most to the time that ctx leaves.
func within(ctx context.Context, c *sarama.Config) *sarama.Config {
	deadline, ok := ctx.Deadline()
	if !ok {
		return c
	}
	left := max(time.Until(deadline), time.Millisecond)
	c.Net.DialTimeout = min(c.Net.DialTimeout, left)
	c.Net.ReadTimeout = min(c.Net.ReadTimeout, left)
	c.Net.WriteTimeout = min(c.Net.WriteTimeout, left)
	c.Metadata.Timeout = left
	c.Admin.Timeout = min(c.Admin.Timeout, left)
	return c
}

// SaramaConfig returns the settings that every producer, consumer and admin client of the mesh starts from.
// They are those of existing installations: first retry after 100 ms, 8 retries, connect time-out 3 s, request
// time-out 30 s. Protocol version 3.6 is spoken by Kafka 4.x and by the embedded broker alike; watermill-kafka's own
// default (1.0) is refused by Kafka 4.
func (k Kafka) SaramaConfig() *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = k.ClientID
	c.Version = sarama.V3_6_0_0
	c.Net.DialTimeout = 3 * time.Second
	c.Net.ReadTimeout = 30 * time.Second
	c.Net.WriteTimeout = 30 * time.Second
	c.Metadata.Retry.Max = 8
	c.Metadata.Retry.Backoff = 100 * time.Millisecond
	c.Metadata.AllowAutoTopicCreation = false
	c.Admin.Retry.Max = 8
	c.Admin.Retry.Backoff = 100 * time.Millisecond
	c.Admin.Timeout = 30 * time.Second

	// An acknowledged record is on every in-sync replica, once, in order.
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Idempotent = true
	c.Net.MaxOpenRequests = 1
	c.Producer.Retry.Max = 8
	c.Producer.Retry.Backoff = 100 * time.Millisecond
	c.Producer.Return.Successes = true
	c.Producer.Return.Errors = true

	c.Consumer.Return.Errors = true
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Offsets.AutoCommit.Interval = time.Second
	c.ApiVersionsRequest = true
	return c
}

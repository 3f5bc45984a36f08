package backend

import (
	"time"

	"github.com/IBM/sarama"
)

// Kafka says where the brokers are and under which name we appear in their logs.
type Kafka struct {
	Brokers  []string
	ClientID string
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

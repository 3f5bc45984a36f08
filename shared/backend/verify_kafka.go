package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/edumatrix/interlinked/proto/catalog"
)

func verifyKafka(ctx context.Context, k Kafka, topics []catalog.Topic) []Result {
	return perform(ctx, "Kafka", []check{
		{"reachable", func(ctx context.Context) (finding, error) {
			versions, err := k.apiVersions(ctx)
			if err != nil {
				return finding{}, err
			}
			return finding{detail: k.Where() + ", speaks as " + guessVersion(versions)}, nil
		}},
		{"topics", func(ctx context.Context) (finding, error) { return k.compareTopics(ctx, topics) }},
		{"produce and consume", func(ctx context.Context) (finding, error) {
			took, err := k.roundTrip(ctx)
			return finding{detail: fmt.Sprintf("a record, back after %s", took.Round(100*time.Microsecond))}, err
		}},
	})
}

// guessVersion tells a broker's version by what it speaks; it does not say it itself. What is not Kafka matches none:
// then there is still what 4.0 has dropped (KIP-896: the first three versions of Produce).
func guessVersion(r *sarama.ApiVersionsResponse) string {
	response, modern := kmsg.NewApiVersionsResponse(), false
	for _, k := range r.ApiKeys {
		key := kmsg.NewApiVersionsResponseApiKey()
		key.ApiKey, key.MinVersion, key.MaxVersion = k.ApiKey, k.MinVersion, k.MaxVersion
		response.ApiKeys = append(response.ApiKeys, key)
		modern = modern || key.ApiKey == int16(kmsg.Produce) && key.MinVersion >= 3
	}
	guess := kversion.FromApiVersionsResponse(&response).VersionGuess()
	switch {
	case strings.HasPrefix(guess, "v") || strings.HasPrefix(guess, "at least v"):
		return guess
	case modern:
		return "v4.0 or later"
	default:
		return "earlier than v4.0"
	}
}

func (k Kafka) compareTopics(ctx context.Context, topics []catalog.Topic) (_ finding, err error) {
	client, admin, err := k.admin(ctx)
	if err != nil {
		return finding{}, err
	}
	defer func() { err = errors.Join(err, admin.Close()) }()
	there, err := k.describe(admin, topics)
	if err != nil {
		return finding{}, err
	}
	var wrong, missing []string
	for _, t := range topics {
		if f, ok := there[t.Name]; ok {
			wrong = append(wrong, f.differences(t, k.Topic(t.Name), len(client.Brokers()))...)
		} else {
			missing = append(missing, k.Topic(t.Name))
		}
	}
	if len(missing) > 0 {
		wrong = append(wrong, "missing, and made at the first start of the mesh: "+strings.Join(missing, ", "))
	}
	if len(wrong) > 0 {
		return finding{}, errors.New(strings.Join(wrong, "; "))
	}
	return finding{detail: fmt.Sprintf("all %d as declared: partitions, retention, replicas", len(topics))}, nil
}

// roundTrip sends a record through a topic of its own.
func (k Kafka) roundTrip(ctx context.Context) (took time.Duration, err error) {
	client, admin, err := k.admin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, admin.Close()) }()
	topic := catalog.Topic{Name: "verify-" + uuid.NewString(), Partitions: 1, Retention: time.Hour}
	name := k.Topic(topic.Name)
	if err := k.create(ctx, client, admin, []catalog.Topic{topic}); err != nil {
		return 0, fmt.Errorf("create topic %s: %w", name, err)
	}
	defer func() {
		if e := admin.DeleteTopic(name); e != nil {
			err = errors.Join(err, fmt.Errorf("delete topic %s: %w", name, e))
		}
	}()
	producer, err := sarama.NewSyncProducerFromClient(client)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, producer.Close()) }()
	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, consumer.Close()) }()
	partition, err := consumer.ConsumePartition(name, 0, sarama.OffsetOldest)
	if err != nil {
		return 0, fmt.Errorf("consume: %w", err)
	}
	defer func() { err = errors.Join(err, partition.Close()) }()

	begun, sent := time.Now(), uuid.NewString()
	_, _, err = producer.SendMessage(&sarama.ProducerMessage{Topic: name, Value: sarama.StringEncoder(sent)})
	if err != nil {
		return 0, fmt.Errorf("produce: %w", err)
	}
	select {
	case m := <-partition.Messages():
		if string(m.Value) != sent {
			return 0, fmt.Errorf("produced %s, consumed %s", sent, m.Value)
		}
		return time.Since(begun), nil
	case e := <-partition.Errors():
		return 0, fmt.Errorf("consume: %w", e)
	case <-ctx.Done():
		return 0, errors.New("the record did not come back in time")
	}
}

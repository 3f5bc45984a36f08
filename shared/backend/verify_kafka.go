package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
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
			return finding{detail: k.Where() + ", version " + guessVersion(versions)}, nil
		}},
		{"topics", func(ctx context.Context) (finding, error) { return k.compareTopics(ctx, topics) }},
		{"produce and consume", func(ctx context.Context) (finding, error) {
			took, err := k.roundTrip(ctx)
			return finding{detail: fmt.Sprintf("a record, back after %s", took.Round(100*time.Microsecond))}, err
		}},
	})
}

// guessVersion derives a broker's version from the requests that it supports, because a broker does not report its
// version. A broker that is not Apache Kafka may match no version. It then counts as earlier than 4.0 if it supports
// the versions 0 to 2 of Produce, which 4.0 has removed (KIP-896), and as 4.0 or later if it does not.
func guessVersion(r *kmsg.ApiVersionsResponse) string {
	modern := false
	for _, k := range r.ApiKeys {
		modern = modern || k.ApiKey == int16(kmsg.Produce) && k.MinVersion >= 3
	}
	guess := kversion.FromApiVersionsResponse(r).VersionGuess()
	switch {
	case strings.HasPrefix(guess, "v") || strings.HasPrefix(guess, "at least v"):
		return guess
	case modern:
		return "v4.0 or later"
	default:
		return "earlier than v4.0"
	}
}

func (k Kafka) compareTopics(ctx context.Context, topics []catalog.Topic) (finding, error) {
	client, admin, err := k.admin()
	if err != nil {
		return finding{}, err
	}
	defer client.Close()
	there, brokers, err := k.describe(ctx, admin, topics)
	if err != nil {
		return finding{}, err
	}
	var wrong, missing []string
	for _, t := range topics {
		if f, ok := there[t.Name]; ok {
			wrong = append(wrong, f.differences(t, k.Topic(t.Name), brokers)...)
		} else {
			missing = append(missing, k.Topic(t.Name))
		}
	}
	if len(missing) > 0 {
		wrong = append(wrong, "missing, to be created at the first start of the mesh:  "+strings.Join(missing, ", "))
	}
	if len(wrong) > 0 {
		return finding{}, errors.New(strings.Join(wrong, "; "))
	}
	return finding{detail: fmt.Sprintf("all %d as declared: partitions, retention, replicas", len(topics))}, nil
}

// roundTrip sends a record through a topic that it creates and deletes, and returns how long the record took.
func (k Kafka) roundTrip(ctx context.Context) (took time.Duration, err error) {
	topic := catalog.Topic{Name: "verify-" + uuid.NewString(), Partitions: 1, Retention: time.Hour}
	name := k.Topic(topic.Name)
	client, err := kgo.NewClient(append(k.Options(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		name: {0: kgo.NewOffset().AtStart()}}))...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	brokers, err := admin.ListBrokers(ctx)
	if err != nil {
		return 0, err
	}
	if err := k.create(ctx, client, []catalog.Topic{topic}, len(brokers)); err != nil {
		return 0, fmt.Errorf("create topic %s: %w", name, err)
	}
	defer func() {
		if _, e := admin.DeleteTopic(ctx, name); e != nil {
			err = errors.Join(err, fmt.Errorf("delete topic %s: %w", name, e))
		}
	}()
	client.ForceMetadataRefresh()
	begun, sent := time.Now(), uuid.NewString()
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: name, Value: []byte(sent)}).FirstErr(); err != nil {
		return 0, fmt.Errorf("produce: %w", err)
	}
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return 0, errors.New("the record did not come back in time")
		}
		for _, r := range fetches.Records() {
			if string(r.Value) != sent {
				return 0, fmt.Errorf("produced %s, consumed %s", sent, r.Value)
			}
			return time.Since(begun), nil
		}
		if err := fetches.Err(); err != nil && !kerr.IsRetriable(err) {
			return 0, fmt.Errorf("consume: %w", err)
		}
	}
}

package bus_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// onBoth runs a test on the embedded broker and, if integration tests are enabled, on Apache Kafka.
func onBoth(t *testing.T, test func(t *testing.T, k backend.Kafka)) {
	t.Helper()
	for name, start := range brokers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t))
		})
	}
}

func benchBoth(b *testing.B, bench func(b *testing.B, k backend.Kafka)) {
	b.Helper()
	for name, start := range brokers() {
		b.Run(name, func(b *testing.B) { bench(b, start(b)) })
	}
}

// createTopic creates a topic unless it exists.
func createTopic(t testing.TB, k backend.Kafka, topic string, partitions int32) {
	t.Helper()
	admin := administrator(t, k)
	if _, err := admin.CreateTopic(t.Context(), partitions, 1, nil, k.Topic(topic)); err != nil {
		require.ErrorIs(t, err, kerr.TopicAlreadyExists)
	}
	meshtest.Eventually(t, "the topic exists", func() bool {
		found, err := admin.ListEndOffsets(t.Context(), k.Topic(topic))
		return err == nil && found.Error() == nil && len(found[k.Topic(topic)]) >= int(partitions)
	})
}

// plain returns a client without any settings of package bus.
func plain(t testing.TB, k backend.Kafka, more ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(k.Options(), more...)...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func administrator(t testing.TB, k backend.Kafka) *kadm.Client {
	t.Helper()
	return kadm.NewClient(plain(t, k))
}

// deleteBefore deletes the records below an offset.
func deleteBefore(t testing.TB, k backend.Kafka, topic string, partition int32, offset int64) {
	t.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(k.Topic(topic), partition, offset, -1)
	deleted, err := administrator(t, k).DeleteRecords(t.Context(), offsets)
	require.NoError(t, err)
	require.NoError(t, deleted.Error())
}

// publishTo publishes messages to one partition, which may be another one than the partition of a message's key.
func publishTo(t testing.TB, p message.Publisher, topic string, partition int32, messages ...*message.Message) {
	t.Helper()
	for _, m := range messages {
		m.Metadata.Set(bus.MetadataPartition, strconv.Itoa(int(partition)))
	}
	require.NoError(t, p.Publish(topic, messages...))
}

// background is the context of calls that may be made after the test's own context has ended.
var background = context.Background()

func publisher(t testing.TB, k backend.Kafka) *bus.Publisher {
	t.Helper()
	p, err := bus.NewPublisher(k, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// keyed returns a message with a key.
func keyed(key, body string) *message.Message {
	m := message.NewMessage(key+"/"+body, []byte(body))
	m.Metadata.Set(bus.MetadataKey, key)
	return m
}

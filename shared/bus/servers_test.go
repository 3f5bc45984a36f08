package bus_test

import (
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
)

// onBoth runs a test on the embedded broker, and on Apache Kafka where integration tests run.
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

// createTopic makes a topic unless it exists.
func createTopic(t testing.TB, k backend.Kafka, topic string, partitions int32) {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(k.Brokers, k.SaramaConfig())
	require.NoError(t, err)
	defer func() { require.NoError(t, admin.Close()) }()
	err = admin.CreateTopic(k.Topic(topic), &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1}, false)
	if err != nil {
		require.ErrorIs(t, err, sarama.ErrTopicAlreadyExists)
	}
}

func publisher(t testing.TB, k backend.Kafka) *bus.Publisher {
	t.Helper()
	p, err := bus.NewPublisher(k, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// keyed is a message with a key.
func keyed(key, body string) *message.Message {
	m := message.NewMessage(key+"/"+body, []byte(body))
	m.Metadata.Set(bus.MetadataKey, key)
	return m
}

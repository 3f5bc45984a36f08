package bus_test

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/bus"
)

var prefixes atomic.Int64

// onBoth runs a test on Apache Kafka and on the embedded broker.
func onBoth(t *testing.T, test func(t *testing.T, k backend.Kafka)) {
	t.Helper()
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		test(t, realKafka(t))
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, embeddedKafka(t))
	})
}

func realKafka(t testing.TB) backend.Kafka {
	return backend.Kafka{Brokers: strings.Split(os.Getenv("KAFKA_BROKERS"), ","), ClientID: "bus-test", TopicPrefix: fmt.Sprintf("t%d-%d.", time.Now().UnixNano(), prefixes.Add(1))}
}

func embeddedKafka(t testing.TB) backend.Kafka {
	t.Helper()
	k, err := embedded.StartKafka(embedded.KafkaOptions{})
	require.NoError(t, err)
	t.Cleanup(k.Stop)
	return backend.Kafka{Brokers: k.Brokers(), ClientID: "bus-test", TopicPrefix: "t."}
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

package bus_test

import (
	"strconv"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Only the tests of this file and BenchmarkSubscribe use Watermill's stock publisher or subscriber for Kafka, which are
// based on sarama.

func stockConfig(k backend.Kafka) *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = k.ClientID
	c.Version = sarama.V3_6_0_0
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	c.Producer.Return.Errors = true
	c.Consumer.Return.Errors = true
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	return c
}

func stockSubscriber(t testing.TB, k backend.Kafka, group string) message.Subscriber {
	t.Helper()
	s, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: k.Brokers, ConsumerGroup: k.Topic(group),
		Unmarshaler: kafka.DefaultMarshaler{}, OverwriteSaramaConfig: stockConfig(k)}, watermill.NopLogger{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func stockPublisher(t testing.TB, k backend.Kafka) message.Publisher {
	t.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: k.Brokers, Marshaler: kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: stockConfig(k)}, watermill.NopLogger{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// bare returns a message without a key. Its id contains a space, its payload contains NUL, and its payload and metadata
// contain a byte that is not UTF-8.
func bare(n int) *message.Message {
	m := message.NewMessage("id "+strconv.Itoa(n), []byte("\x00payload\xff"+strconv.Itoa(n)))
	m.Metadata.Set("own", "välue\xff")
	m.Metadata.Set("empty", "")
	return m
}

func TestInterop_TheStockSubscriberReadsOurPublisher(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 1)
		sent := bare(1)
		sent.Metadata.Set(bus.MetadataKey, "the key")
		publish(t, publisher(t, k), "topic", sent)
		got := receive(t, subscribe(t, stockSubscriber(t, k, "stock"), k.Topic("topic")))
		require.Equal(t, sent.UUID, got.UUID)
		require.Equal(t, sent.Payload, got.Payload)
		require.Equal(t, message.Metadata{"own": "välue\xff", "empty": ""}, got.Metadata)
		key, ok := kafka.MessageKeyFromCtx(got.Context())
		require.True(t, ok)
		require.Equal(t, "the key", string(key))
		got.Ack()
	})
}

func TestInterop_OurSubscriberReadsTheStockPublisher(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 1)
		p, all := stockPublisher(t, k), 20
		for n := range all {
			publish(t, p, k.Topic("topic"), bare(n))
		}
		grouped := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
		read := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
		for _, messages := range []<-chan *message.Message{grouped, read} {
			for n := range all {
				got, want := receive(t, messages), bare(n)
				require.Equal(t, want.UUID, got.UUID)
				require.Equal(t, want.Payload, got.Payload)
				require.Equal(t, want.Metadata, got.Metadata)
				got.Ack()
			}
		}
	})
}

// Sarama's hash partitioner and envelope.Partition must choose the same partition for a key.
func TestInterop_PartitionsAreThoseOfSaramasHash(t *testing.T) {
	t.Parallel()
	for n := range 1000 {
		key := "conversation:" + strconv.Itoa(n)
		want, err := sarama.NewHashPartitioner("t").Partition(&sarama.ProducerMessage{Key: sarama.StringEncoder(key)}, 12)
		require.NoError(t, err)
		require.Equal(t, want, envelope.Partition(key, 12))
	}
}

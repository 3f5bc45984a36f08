package bus_test

import (
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

func TestPublisher_PutsAKeyIntoThePartitionThatEnvelopePartitionReturns(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		const partitions = 5
		createTopic(t, k, "topic", partitions)
		var batch []*message.Message
		for n := range 100 {
			batch = append(batch, keyed("key "+strconv.Itoa(n), "0"))
		}
		publish(t, publisher(t, k), "topic", batch...)
		messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
		used := map[int32]bool{}
		for range batch {
			m := receive(t, messages)
			partition, _ := bus.PartitionOf(m.Context())
			require.Equal(t, envelope.Partition(m.Metadata.Get(bus.MetadataKey), partitions), partition)
			used[partition] = true
			m.Ack()
		}
		require.Len(t, used, partitions)
	})
}

func TestPublisher_PutsAMessageIntoThePartitionOfItsMetadata(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 3)
	p := publisher(t, k)
	for partition := range int32(3) {
		m := keyed("same", strconv.Itoa(int(partition)))
		m.Metadata.Set(bus.MetadataPartition, strconv.Itoa(int(partition)))
		publish(t, p, "topic", m)
	}
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
	for range 3 {
		m := receive(t, messages)
		partition, _ := bus.PartitionOf(m.Context())
		require.Equal(t, strconv.Itoa(int(partition)), string(m.Payload))
		require.Empty(t, m.Metadata.Get(bus.MetadataPartition), "the partition is not a header")
		m.Ack()
	}
	for _, wrong := range []string{"3", "-1", "one"} {
		m := keyed("a", "0")
		m.Metadata.Set(bus.MetadataPartition, wrong)
		err := p.Publish("topic", m)
		require.Error(t, err, wrong)
		require.NotErrorIs(t, err, retry.ErrUnavailable, wrong)
	}
}

func TestPublisher_KeepsTheOrderOfABatch(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		const all = 3000
		createTopic(t, k, "topic", 1)
		publish(t, publisher(t, k), "topic", numbered("a", 0, all)...)
		messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
		for n := range all {
			m := receive(t, messages)
			require.Equal(t, "a/"+strconv.Itoa(n), m.UUID)
			m.Ack()
		}
	})
}

func TestPublisher_ReturnsTheFailedMessages(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	p := publisher(t, k)
	large := keyed("large", strings.Repeat("x", 2<<20))
	err := p.Publish("topic", keyed("a", "0"), large, keyed("a", "1"))
	var failed *bus.PublishError
	require.ErrorAs(t, err, &failed)
	require.Len(t, failed.Failed, 1)
	require.Same(t, large, failed.Failed[0].Message)
	require.Equal(t, 3, failed.Messages)
	require.NotErrorIs(t, err, retry.ErrUnavailable)
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
	for n := range 2 {
		m := receive(t, messages)
		require.Equal(t, "a/"+strconv.Itoa(n), m.UUID, "the other messages are published")
		m.Ack()
	}
}

func TestPublisher_RefusesOnceItIsClosed(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	p := publisher(t, k)
	require.NoError(t, p.Publish("topic"))
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	err := p.Publish("topic", keyed("a", "0"))
	require.Error(t, err)
	require.NotErrorIs(t, err, retry.ErrUnavailable)
}

// One call of Publish sends several batches to one partition. The broker refuses the first batch until the call fails.
// Then the caller publishes the failed messages again. The messages must keep their order.
func TestPublisher_KeepsTheOrderOfMessagesThatArePublishedAgain(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	k := backend.Kafka{Brokers: c.ListenAddrs(), ClientID: "bus-test", TopicPrefix: "t."}
	createTopic(t, k, "topic", 1)
	var refused atomic.Int64
	var healed atomic.Bool
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		request := r.(*kmsg.ProduceRequest)
		var batch kmsg.RecordBatch
		if err := batch.ReadFrom(request.Topics[0].Partitions[0].Records); err != nil || healed.Load() || batch.FirstSequence != 0 {
			return nil, nil, false
		}
		refused.Add(1)
		answer := request.ResponseKind().(*kmsg.ProduceResponse)
		for _, asked := range request.Topics {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = asked.Topic, asked.TopicID
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.ErrorCode = kerr.NotEnoughReplicas.Code
			topic.Partitions = append(topic.Partitions, partition)
			answer.Topics = append(answer.Topics, topic)
		}
		return answer, nil, true
	})

	p := publisher(t, k)
	var left []*message.Message
	for n := range 12 { // too large for fewer than four batches
		m := keyed("sender", strconv.Itoa(n))
		m.Payload = append([]byte(strconv.Itoa(n)+" "), make([]byte, 300_000)...)
		left = append(left, m)
	}
	sent := len(left)
	for len(left) > 0 {
		err := p.Publish("topic", left...)
		healed.Store(true) // from now on the broker accepts all batches
		left = nil
		var failed *bus.PublishError
		if errors.As(err, &failed) {
			require.ErrorIs(t, err, retry.ErrUnavailable)
			for _, f := range failed.Failed {
				left = append(left, f.Message)
			}
		}
	}
	require.Positive(t, refused.Load())
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
	for next := 0; next < sent; {
		m := receive(t, messages)
		n, err := strconv.Atoi(m.UUID[len("sender/"):])
		require.NoError(t, err)
		require.LessOrEqual(t, n, next, "first appearances keep their order")
		next = max(next, n+1)
		m.Ack()
	}
}

// A service declares a topic with another number of partitions than the broker has. The publisher must use the number
// of the broker.
func TestPublisher_UsesTheBrokersPartitionCount(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 3)
		for declared, wantText := range map[int32]string{6: "has 3 partitions, declared are 6", 2: "has 3 partitions, declared are 2"} {
			differences, err := k.EnsureTopics(t.Context(), []catalog.Topic{{Name: "topic", Partitions: declared,
				Retention: 7 * 24 * time.Hour}})
			require.NoError(t, err)
			require.ErrorContains(t, errors.New(strings.Join(differences, "; ")), wantText)
			p := publisher(t, k)
			n, err := p.Partitions(t.Context(), "topic")
			require.NoError(t, err)
			require.EqualValues(t, 3, n)
			for i := range 20 {
				publish(t, p, "topic", keyed("key"+strconv.Itoa(i), strconv.Itoa(int(declared))))
			}
		}
		messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
		for range 40 {
			m := receive(t, messages)
			at, _ := bus.PartitionOf(m.Context())
			require.Equal(t, envelope.Partition(m.Metadata.Get(bus.MetadataKey), 3), at)
			m.Ack()
		}
	})
}

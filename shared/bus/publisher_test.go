package bus_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func TestPublisher_PutsAKeyWherePartitionSays(t *testing.T) {
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
			require.Equal(t, bus.Partition(m.Metadata.Get(bus.MetadataKey), partitions), partition)
			used[partition] = true
			m.Ack()
		}
		require.Len(t, used, partitions)
	})
}

func TestPublisher_PutsAMessageWhereItsMetadataSay(t *testing.T) {
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
		require.Empty(t, m.Metadata.Get(bus.MetadataPartition), "it is no header")
		m.Ack()
	}
	for _, wrong := range []string{"3", "-1", "one"} {
		m := keyed("a", "0")
		m.Metadata.Set(bus.MetadataPartition, wrong)
		err := p.Publish("topic", m)
		require.Error(t, err, wrong)
		require.NotErrorIs(t, err, bus.ErrAway, wrong)
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

func TestPublisher_TellsWhichMessagesFailed(t *testing.T) {
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
	require.NotErrorIs(t, err, bus.ErrAway)
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
	for n := range 2 {
		m := receive(t, messages)
		require.Equal(t, "a/"+strconv.Itoa(n), m.UUID, "the others are there")
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
	require.NotErrorIs(t, err, bus.ErrAway)
}

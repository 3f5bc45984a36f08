package bus_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// In existing installations, sarama's hash partitioner has chosen the partitions of the records. envelope.Partition
// must choose the same partition for every key: otherwise the new events of a stream would be in another partition than
// the earlier events.
func TestPartition_DoesNotChange(t *testing.T) {
	t.Parallel()
	for key, want := range map[string][4]int32{ // the key's partition among 1, 3, 5 and 12 partitions
		"":                             {0, 0, 0, 3},
		"conversation:42":              {0, 0, 3, 6},
		"user:alice":                   {0, 0, 2, 0},
		"post:0b9c7a52-5a5b-4f0e-8d8f": {0, 1, 2, 1},
		"\xff\x00":                     {0, 2, 4, 2},
		"conversation:überraschung/日本": {0, 2, 3, 8},
	} {
		for i, n := range []int32{1, 3, 5, 12} {
			h := fnv.New32a()
			_, _ = h.Write([]byte(key))
			again := int32(h.Sum32()) % n
			if again < 0 {
				again = -again
			}
			assert.Equal(t, again, envelope.Partition(key, n), "%q of %d", key, n)
			assert.Equal(t, want[i], envelope.Partition(key, n), "%q of %d", key, n)
		}
	}
}

func TestPublisher_CountsPartitionsAsTheBrokerDoes(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 3)
		p := publisher(t, k)
		n, err := p.Partitions(t.Context(), "topic")
		require.NoError(t, err)
		require.EqualValues(t, 3, n)
		publish(t, p, "topic", keyed("a", "0"))

		meshtest.GrowTopic(t, k, "topic", 5)
		meshtest.Eventually(t, "the new partition is counted", func() bool {
			n, err := p.Partitions(t.Context(), "topic")
			return err == nil && n == 5
		})
		to := keyed("a", "1")
		to.Metadata.Set(bus.MetadataPartition, "4")
		publish(t, p, "topic", to) // must succeed even if the publisher's client does not know the partition yet
		meshtest.Eventually(t, "keys go to the partitions of the new count", func() bool {
			publish(t, p, "topic", keyed("conversation:42", "0"))
			last, err := bus.LastRecords(t.Context(), k, "topic")
			require.NoError(t, err)
			r := last[envelope.Partition("conversation:42", 5)]
			return r != nil && string(r.Key) == "conversation:42"
		})

		_, err = p.Partitions(t.Context(), "nowhere")
		require.ErrorIs(t, err, retry.ErrUnavailable)
	})
}

func TestPublisher_SendsToAPartitionThatItDoesNotKnowYet(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 3)
	p := publisher(t, k)
	publish(t, p, "topic", keyed("a", "0"))
	meshtest.GrowTopic(t, k, "topic", 4)
	m := keyed("a", "1")
	m.Metadata.Set(bus.MetadataPartition, "3")
	publish(t, p, "topic", m)
	last, err := bus.LastRecords(t.Context(), k, "topic")
	require.NoError(t, err)
	require.Equal(t, "a/1", last[3].ID())
}

func TestPublisher_ReturnsTheLastCountWhileTheBrokerIsUnavailable(t *testing.T) {
	t.Parallel()
	k := startRestartable(t)
	createTopic(t, k.Kafka, "topic", 3)
	p := publisher(t, k.Kafka)
	_, err := p.Partitions(t.Context(), "topic")
	require.NoError(t, err)
	k.running.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), dependencyWait)
	defer cancel()
	time.Sleep(3100 * time.Millisecond) // longer than the publisher caches the count
	n, err := p.Partitions(ctx, "topic")
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
}

func TestLastRecords_AreThoseOfEachPartition(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 3)
		p := publisher(t, k)
		for n := range 5 {
			m := keyed("a", strconv.Itoa(n))
			m.Metadata.Set("ce_position", strconv.Itoa(100+n))
			publishTo(t, p, "topic", 0, m)
		}
		publishTo(t, p, "topic", 2, keyed("b", "0"))
		deleteBefore(t, k, "topic", 0, 2)
		last, err := bus.LastRecords(t.Context(), k, "topic")
		require.NoError(t, err)
		require.Len(t, last, 3)
		require.Nil(t, last[1])
		require.Equal(t, []string{"a/4", "a", "104"},
			[]string{last[0].ID(), string(last[0].Key), string(last[0].Header("ce_position"))})
		require.EqualValues(t, 4, last[0].Offset)
		require.Equal(t, "b/0", last[2].ID())

		all, err := bus.Ranges(t.Context(), k, "topic")
		require.NoError(t, err)
		require.Equal(t, []bus.Range{{Oldest: 2, End: 5}, {}, {Oldest: 0, End: 1}}, all)

		_, err = bus.LastRecords(t.Context(), k, "nowhere")
		require.ErrorContains(t, err, "nowhere")
	})
}

// reading collects the offsets of records. Its method take is the handler of Reader.Read.
type reading struct {
	mu  sync.Mutex
	got map[string][]int64 // offsets by topic and partition
}

func (r *reading) take(_ context.Context, record *bus.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := fmt.Sprintf("%s/%d", record.Topic, record.Partition)
	r.got[at] = append(r.got[at], record.Offset)
}

func (r *reading) of(at string) []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[at]
}

func TestRead_PassesEachPartitionInOrderAndFindsNewOnes(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		for _, topic := range []string{"one", "other"} {
			createTopic(t, k, topic, 2)
		}
		p := publisher(t, k)
		publishTo(t, p, "one", 0, keyed("a", "0"), keyed("a", "1"))
		ctx, cancel := context.WithCancel(t.Context())
		r, got, ended := reader(t, k, bus.ReaderOptions{}), &reading{got: map[string][]int64{}}, make(chan error)
		go func() { ended <- r.Read(ctx, []string{"one", "other"}, got.take) }()
		meshtest.Eventually(t, "reading begins with the last record", func() bool { return len(got.of("one/0")) == 1 })
		publishTo(t, p, "one", 0, keyed("a", "2"), keyed("a", "3"))
		publishTo(t, p, "other", 1, keyed("b", "0"))
		meshtest.Eventually(t, "all came", func() bool { return len(got.of("one/0")) == 3 && len(got.of("other/1")) == 1 })
		require.Equal(t, []int64{1, 2, 3}, got.of("one/0"))

		// The topic gets another partition. The Reader must read the new partition from its first record.
		meshtest.GrowTopic(t, k, "other", 3)
		begun := time.Now()
		publishTo(t, p, "other", 2, keyed("c", "0"), keyed("c", "1"))
		meshtest.Eventually(t, "the new partition is read", func() bool { return len(got.of("other/2")) == 2 })
		require.Less(t, time.Since(begun), 10*time.Second)
		require.Equal(t, []int64{0, 1}, got.of("other/2"))
		cancel()
		require.NoError(t, <-ended)
	})
}

// The records are on the broker before they are read, so the first fetch returns several of them.
func TestRead_ShowsTheRecordsAhead(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "one", 1)
		publishTo(t, publisher(t, k), "one", 0, keyed("a", "0"), keyed("b", "1"), keyed("a", "2"), keyed("b", "3"))
		r := reader(t, k, bus.ReaderOptions{From: func(_ string, _ int32, oldest, _ int64) int64 { return oldest }})
		ctx, cancel := context.WithCancel(t.Context())
		ahead := map[int64][]int64{} // by offset
		require.NoError(t, r.Read(ctx, []string{"one"}, func(_ context.Context, record *bus.Record) {
			for _, next := range record.Ahead {
				ahead[record.Offset] = append(ahead[record.Offset], next.Offset)
			}
			if record.Offset == 3 {
				cancel()
			}
		}))
		require.NotEmpty(t, ahead[0])
		for offset, all := range ahead {
			for i, next := range all {
				require.Equal(t, offset+1+int64(i), next)
			}
		}
		require.Empty(t, ahead[3])
	})
}

func TestRead_ASlowHandlerDelaysOnlyItsPartition(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 2)
	p := publisher(t, k)
	publishTo(t, p, "topic", 0, keyed("a", "0"))
	got, r := &reading{got: map[string][]int64{}}, reader(t, k, bus.ReaderOptions{From: fromOldest})
	go func() {
		_ = r.Read(t.Context(), []string{"topic"}, func(ctx context.Context, record *bus.Record) {
			if record.Partition == 0 {
				<-ctx.Done()
				return
			}
			got.take(ctx, record)
		})
	}()
	body := make([]byte, 100_000) // 100 records of this size are more than the Reader queues for one partition
	for n := range 200 {
		m := keyed("a", strconv.Itoa(n))
		m.Payload = body
		publishTo(t, p, "topic", int32(n%2), m)
	}
	meshtest.Eventually(t, "the other partition is read", func() bool { return len(got.of("topic/1")) == 100 })
}

// The handler of one partition is slow, so that the partition's queue becomes full and fetching pauses. No other
// partition has records. When the handler has caught up, the partition must be fetched again at once.
func TestRead_ContinuesSoonAfterAPartitionWasFull(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 2)
	p := publisher(t, k)
	body := make([]byte, 100_000)
	const all = 300
	for n := range all {
		m := keyed("a", strconv.Itoa(n))
		m.Payload = body
		publishTo(t, p, "topic", 0, m)
	}
	got, r := &reading{got: map[string][]int64{}}, reader(t, k, bus.ReaderOptions{From: fromOldest})
	begun := time.Now()
	go func() {
		_ = r.Read(t.Context(), []string{"topic"}, func(ctx context.Context, record *bus.Record) {
			time.Sleep(time.Millisecond)
			got.take(ctx, record)
		})
	}()
	meshtest.Eventually(t, "all came", func() bool { return len(got.of("topic/0")) == all })
	require.Less(t, time.Since(begun), backend.FetchWait)
	for n, offset := range got.of("topic/0") {
		require.EqualValues(t, n, offset)
	}
}

func TestSubscriber_InOrderDeliversAPartitionInOneLane(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	p := publisher(t, k)
	const all = 50
	for n := range all {
		publish(t, p, "topic", keyed("key"+strconv.Itoa(n), strconv.Itoa(n)))
	}
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{InOrder: true}), "topic")
	first := receive(t, messages)
	nothing(t, messages) // with InOrder, messages of other keys wait for the first message too
	batch := []*message.Message{first}
	bus.Release(first)
	for len(batch) < all {
		m := receive(t, messages)
		require.Equal(t, strconv.Itoa(len(batch)), string(m.Payload))
		batch = append(batch, m)
		bus.Release(m)
	}
	for _, m := range batch[1:] {
		m.Ack()
	}
	nothing(t, messages)
	require.LessOrEqual(t, committed(t, k, "topic", 0), int64(0), "the offset waits for the first message")
	first.Ack()
	meshtest.Eventually(t, "all is committed", func() bool { return committed(t, k, "topic", 0) == all })
}

func TestClaimOf_ChangesWithEveryAssignment(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 2)
		p := publisher(t, k)
		for partition := range int32(2) {
			publishTo(t, p, "topic", partition, keyed("a", "0"))
		}
		one := subscriber(t, k, bus.SubscriberOptions{Drain: time.Millisecond})
		messages := subscribe(t, one, "topic")
		claims := map[int32]*bus.Claim{}
		for len(claims) < 2 {
			m := receive(t, messages)
			claim, ok := bus.ClaimOf(m.Context())
			require.True(t, ok)
			require.Equal(t, "topic", claim.Topic)
			claims[claim.Partition] = claim
		}
		other := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
		m := receive(t, other)
		moved, _ := bus.ClaimOf(m.Context())
		require.NotSame(t, claims[moved.Partition], moved)
		isDone := func(c *bus.Claim) bool {
			select {
			case <-c.Done():
				return true
			default:
				return false
			}
		}
		require.True(t, isDone(claims[moved.Partition]), "the partition was reassigned")
		require.False(t, isDone(claims[1-moved.Partition]), "the partition stayed")
		require.False(t, isDone(moved))
		require.NoError(t, one.Close())
		require.True(t, isDone(claims[1-moved.Partition]), "the subscriber has stopped")
		_, ok := bus.ClaimOf(t.Context())
		require.False(t, ok)
	})
}

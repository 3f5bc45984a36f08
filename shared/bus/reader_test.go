package bus_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func reader(t testing.TB, k backend.Kafka, o bus.ReaderOptions) *bus.Reader {
	t.Helper()
	if o.Drain == 0 {
		o.Drain = 100 * time.Millisecond
	}
	r, err := bus.NewReader(k, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func fromOldest(_ string, _ int32, oldest, _ int64) int64 { return oldest }

func TestReader_BeginsWithTheLastRecordOfEveryPartition(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 3)
		p := publisher(t, k)
		for partition := range int32(2) { // the third partition stays empty
			for n := range 3 {
				publishTo(t, p, "topic", partition, keyed(fmt.Sprint("p", partition), strconv.Itoa(n)))
			}
		}
		messages := subscribe(t, reader(t, k, bus.ReaderOptions{}), "topic")
		got := map[string]bool{}
		for range 2 {
			m := receive(t, messages)
			got[m.UUID] = true
			m.Ack()
		}
		require.Equal(t, map[string]bool{"p0/2": true, "p1/2": true}, got)
		nothing(t, messages)
		publishTo(t, p, "topic", 2, keyed("p2", "0"))
		require.Equal(t, "p2/0", receive(t, messages).UUID)
	})
}

func TestReader_DeliversOneMessageOfAPartitionAtATime(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 2)
	p := publisher(t, k)
	for partition := range int32(2) {
		publishTo(t, p, "topic", partition, keyed("x", "0"), keyed("y", "1"))
	}
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest, Backoff: time.Millisecond}), "topic")
	one, other := receive(t, messages), receive(t, messages)
	require.Equal(t, "x/0", one.UUID)
	require.Equal(t, "x/0", other.UUID)
	nothing(t, messages)
	one.Nack()
	again := receive(t, messages)
	require.Equal(t, "x/0", again.UUID)
	again.Ack()
	require.Equal(t, "y/1", receive(t, messages).UUID)
}

func TestReader_HoldDelaysAPartition(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 2)
	gate := make(chan struct{})
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest,
		Hold: func(ctx context.Context, _ string, partition int32) {
			if partition == 0 {
				select {
				case <-gate:
				case <-ctx.Done():
				}
			}
		}}), "topic")
	p := publisher(t, k)
	for partition := range int32(2) {
		publishTo(t, p, "topic", partition, keyed(fmt.Sprint("p", partition), "0"))
	}
	m := receive(t, messages)
	require.Equal(t, "p1/0", m.UUID)
	m.Ack()
	nothing(t, messages)
	close(gate)
	require.Equal(t, "p0/0", receive(t, messages).UUID)
}

func TestReader_BeginsAtTheNearestOffsetThatExists(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 1)
		p := publisher(t, k)
		for n := range 10 {
			publish(t, p, "topic", keyed("a", strconv.Itoa(n)))
		}
		deleteBefore(t, k, "topic", 0, 4)

		below := subscribe(t, reader(t, k, bus.ReaderOptions{
			From: func(string, int32, int64, int64) int64 { return 1 }}), "topic")
		require.Equal(t, "a/4", receive(t, below).UUID)
		above := subscribe(t, reader(t, k, bus.ReaderOptions{
			From: func(string, int32, int64, int64) int64 { return 1000 }}), "topic")
		nothing(t, above)
		publish(t, p, "topic", keyed("a", "10"))
		require.Equal(t, "a/10", receive(t, above).UUID)
	})
}

// Records are deleted before a reader has read them. The reader must continue with the first record that still exists.
func TestReader_ContinuesWhenRecordsAreDeletedAheadOfIt(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	p := publisher(t, k)
	// 200 records of this size need several fetches.
	body := make([]byte, 100_000)
	for n := range 200 {
		m := keyed("a", strconv.Itoa(n))
		m.Payload = body
		publish(t, p, "topic", m)
	}
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
	first := receive(t, messages)
	deleteBefore(t, k, "topic", 0, 190)
	first.Ack()
	var last int64
	for last < 199 {
		m := receive(t, messages)
		offset, _ := bus.OffsetOf(m.Context())
		require.Greater(t, offset, last, "in order")
		last = offset
		m.Ack()
	}
}

func TestReader_WaitsForATopicThatDoesNotExistYet(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
	time.Sleep(300 * time.Millisecond)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", keyed("a", "0"))
	require.Equal(t, "a/0", receive(t, messages).UUID)
}

// One Reader subscribes to 14 topics. It must read all partitions of all topics. The test logs how long this takes.
func TestReader_ReadsManyTopicsAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		const topics, partitions = 14, 3
		p := publisher(t, k)
		r := reader(t, k, bus.ReaderOptions{})
		var reading sync.WaitGroup
		begun := make(chan time.Duration, topics*partitions)
		for n := range topics {
			topic := fmt.Sprint("topic", n)
			createTopic(t, k, topic, partitions)
			for partition := range int32(partitions) {
				publishTo(t, p, topic, partition, keyed("a", "0"))
			}
		}
		start := time.Now()
		for n := range topics {
			messages := subscribe(t, r, fmt.Sprint("topic", n))
			reading.Go(func() {
				for m := range messages {
					m.Ack()
					begun <- time.Since(start)
				}
			})
		}
		var longest time.Duration
		for range topics * partitions {
			select {
			case d := <-begun:
				longest = max(longest, d)
			case <-time.After(dependencyWait):
				require.Fail(t, "not all partitions are read")
			}
		}
		t.Logf("%d partitions were read after %v", topics*partitions, longest)
		require.NoError(t, r.Close())
		reading.Wait()
	})
}

var _ message.Subscriber = (*bus.Reader)(nil)

package bus

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// hoarder is full after the first records.
type hoarder struct{}

func (hoarder) take([]*kgo.Record) bool { return true }

func (hoarder) restart() {}

// A partition of a topic that was deleted is answered at once with an error, again and again. It is fetched once in a
// while, and not as fast as the broker answers. Other partitions are not held up, and one that is full stays paused.
func TestFetcher_RestsAfterAnError(t *testing.T) {
	t.Parallel()
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	f := newFetcher(client, slog.New(slog.DiscardHandler))
	fails, works := topicPartition{"topic", 0}, topicPartition{"topic", 1}
	for _, at := range []topicPartition{fails, works} {
		f.add(at, hoarder{})
	}
	paused := func() (all []int32) {
		all = client.PauseFetchPartitions(nil)["topic"]
		slices.Sort(all)
		return all
	}
	throttled := newThrottledLogger(f.log)
	failed := []kgo.FetchPartition{{Partition: 0, Err: kerr.UnknownTopicID}, {Partition: 1}}
	for range 3 {
		f.hand(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "topic", Partitions: failed}}}}, throttled)
		require.Equal(t, []int32{0}, paused())
	}

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.run(ctx) })
	defer running.Wait()
	defer cancel()
	rested := func() bool { return len(paused()) == 0 }
	require.Eventually(t, rested, time.Minute, time.Millisecond, "it is fetched again")

	f.do(func() {
		full := []kgo.FetchPartition{{Partition: 0, Records: []*kgo.Record{{Topic: "topic"}}, Err: kerr.UnknownTopicID}}
		f.hand(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "topic", Partitions: full}}}}, throttled)
	})
	require.Eventually(t, func() (over bool) {
		f.do(func() { over = !f.taps[fails].paused })
		return over
	}, time.Minute, time.Millisecond, "it has rested")
	require.Equal(t, []int32{0}, paused(), "it is full")
	f.open(fails, hoarder{})
	require.Empty(t, paused())
}

// The first records of a partition may come before it is known with which offset it begins. They are not fetched again.
func TestFetcher_RecordsThatComeBeforeTheirOffsetIsKnownComeOnce(t *testing.T) {
	t.Parallel()
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	f := newFetcher(client, slog.New(slog.DiscardHandler))
	early, late := topicPartition{"topic", 0}, topicPartition{"topic", 1}
	f.add(early, hoarder{})
	f.add(late, hoarder{})
	came := []kgo.FetchPartition{{Partition: 0, Records: []*kgo.Record{{Topic: "topic", Offset: 2}}}}
	f.hand(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "topic", Partitions: came}}}}, newThrottledLogger(f.log))
	f.begin(early, 2)
	f.begin(late, 2)
	require.EqualValues(t, 3, f.taps[early].next)
	require.EqualValues(t, 2, f.taps[late].next)
	require.Equal(t, map[topicPartition]bool{late: true}, f.awaited)
}

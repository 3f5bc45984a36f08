package bus

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fullReceiver is a receiver that is always full.
type fullReceiver struct{}

func (fullReceiver) take([]*kgo.Record) bool { return true }

func (fullReceiver) restart() {}

// The topic of a partition was deleted, and the broker answers each fetch of the partition at once with an error. The
// fetcher must fetch the partition again only after a pause. The fetcher must not delay other partitions. If the
// partition's receiver is full at the same time, the partition must stay paused until the receiver is no longer full.
func TestFetcher_PausesAPartitionAfterAnError(t *testing.T) {
	t.Parallel()
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	f := newFetcher(client, 0, slog.New(slog.DiscardHandler))
	fails, works := topicPartition{"topic", 0}, topicPartition{"topic", 1}
	for _, at := range []topicPartition{fails, works} {
		f.add(at, fullReceiver{})
	}
	paused := func() (all []int32) {
		all = client.PauseFetchPartitions(nil)["topic"]
		slices.Sort(all)
		return all
	}
	throttled := newThrottledLogger(f.log)
	failed := []kgo.FetchPartition{{Partition: 0, Err: kerr.UnknownTopicID}, {Partition: 1}}
	for range 3 {
		f.dispatch(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "topic", Partitions: failed}}}}, throttled)
		require.Equal(t, []int32{0}, paused())
	}

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.run(ctx) })
	defer running.Wait()
	defer cancel()
	rested := func() bool { return len(paused()) == 0 }
	require.Eventually(t, rested, time.Minute, time.Millisecond, "the partition is fetched again")

	f.do(func() {
		full := []kgo.FetchPartition{{Partition: 0, Records: []*kgo.Record{{Topic: "topic"}}, Err: kerr.UnknownTopicID}}
		f.dispatch(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "topic", Partitions: full}}}}, throttled)
	})
	require.Eventually(t, func() (over bool) {
		f.do(func() { over = !f.taps[fails].paused })
		return over
	}, time.Minute, time.Millisecond, "the pause is over")
	require.Equal(t, []int32{0}, paused(), "the full partition stays paused")
	f.open(fails, fullReceiver{})
	require.Empty(t, paused())
}

// The first records of a partition may arrive before the fetcher knows the partition's first offset. These records must
// not be fetched a second time.
func TestFetcher_RecordsThatArriveBeforeTheirOffsetIsKnownArriveOnce(t *testing.T) {
	t.Parallel()
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	f := newFetcher(client, 0, slog.New(slog.DiscardHandler))
	early, late := topicPartition{"topic", 0}, topicPartition{"topic", 1}
	f.add(early, fullReceiver{})
	f.add(late, fullReceiver{})
	came := []kgo.FetchPartition{{Partition: 0, Records: []*kgo.Record{{Topic: "topic", Offset: 2}}}}
	f.dispatch(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "topic", Partitions: came}}}}, newThrottledLogger(f.log))
	f.begin(early, 2)
	f.begin(late, 2)
	require.EqualValues(t, 3, f.taps[early].next)
	require.EqualValues(t, 2, f.taps[late].next)
	require.Equal(t, map[topicPartition]bool{late: true}, f.awaited)
}

// countingReceiver counts its records and is never full.
type countingReceiver struct{ got *atomic.Int64 }

func (c countingReceiver) take(records []*kgo.Record) bool {
	c.got.Add(int64(len(records)))
	return false
}

func (countingReceiver) restart() {}

// A fetcher gathers records: its setting gather is one second. The fetcher must pass on the first record at once. While
// records arrive slowly, the fetcher must poll only once per second. When the fetcher has fallen behind, it must poll
// without a pause. The method do, which changes the fetcher's partitions, must not have to wait for the next poll.
func TestFetcher_Gathers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const gather = time.Second
		begun := time.Now()
		var polls, got atomic.Int64
		made, taken := 0, 0
		f := &fetcher{gather: gather, log: slog.New(slog.DiscardHandler), ended: make(chan struct{}),
			taps: map[topicPartition]*fetchState{}, awaited: map[topicPartition]bool{}, interrupt: func() {}}
		at := topicPartition{"topic", 0}
		f.taps[at] = &fetchState{to: countingReceiver{&got}, next: 0}
		var batches []int // numbers of records for the next polls; after these polls, one record arrives every 10 ms
		f.poll = func(ctx context.Context) kgo.Fetches {
			if polls.Add(1); len(batches) > 0 {
				made, batches = made+batches[0], batches[1:]
			} else {
				for made = int(time.Since(begun) / (10 * time.Millisecond)); made <= taken; made++ {
					if sleep(10*time.Millisecond, ctx.Done(), nil); ctx.Err() != nil {
						return nil
					}
				}
			}
			records := make([]*kgo.Record, made-taken)
			for i := range records {
				records[i] = &kgo.Record{Topic: at.topic, Offset: int64(taken + i)}
			}
			taken = made
			return kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: at.topic, Partitions: []kgo.FetchPartition{{Records: records}}}}}}
		}
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			f.ended = make(chan struct{})
			go f.run(ctx)
			return func() { cancel(); <-f.ended }
		}

		stop := run()
		time.Sleep(15 * time.Millisecond)
		synctest.Wait()
		if n := got.Load(); n != 1 {
			t.Errorf("%d records came at once, want 1", n)
		}
		time.Sleep(100 * gather)
		stop()
		if polls.Load() > 101 || got.Load() < 9_900 {
			t.Errorf("%d records came in %d polls, want all but those of the last second in at most 101", got.Load(), polls.Load())
		}

		polls.Store(0)
		batches = []int{maxGathered, maxGathered, maxGathered, 1}
		began := time.Now()
		stop = run()
		synctest.Wait()
		if since := time.Since(began); polls.Load() != 4 || since != 0 {
			t.Errorf("%d polls in %v, want 4 at once", polls.Load(), since)
		}
		f.do(func() {})
		if since := time.Since(began); since != 0 {
			t.Errorf("a change waited %v", since)
		}
		stop()
	})
}

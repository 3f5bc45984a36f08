//go:build integration

package consume_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A stream is retried on another instance while its partition goes on: each event is applied once and in order.
func TestConsume_ARetryElsewhereWhileEventsFlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	other := w.start()
	w.source.say("7", "choke")
	w.eventually("it is parked", func() bool { return w.number("SELECT count(*) FROM notification.parked_streams") == 1 })
	w.chokes.Store(false)
	const n = 600
	var talking sync.WaitGroup
	talking.Go(func() {
		for range n {
			w.source.say("7", "x")
			time.Sleep(2 * time.Millisecond)
		}
	})
	w.eventually("some wait", func() bool { return w.number("SELECT coalesce(max(waiting), 0) FROM notification.parked_streams") > 20 })
	done, err := other.consumer.Resolve(t.Context(), "conversation:7", 1, false)
	require.NoError(t, err)
	require.Zero(t, done.Left)
	talking.Wait()
	w.stored()
	require.Equal(t, upTo(n+1), w.raised("bob", "7"))
}

// The source's database lost its last commits: what it says from then on is applied, and nothing twice.
func TestConsume_TheSourceWasRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	w.source.say("7", "a", "b", "c")
	w.stored()
	w.source.mu.Lock()
	w.source.incarnation, w.source.missing[3] = "second", true
	w.source.versions["conversation:7"] = 2
	w.source.head += 100
	w.source.mu.Unlock()
	w.source.say("7", "another third", "fourth")
	w.stored()
	require.Equal(t, []int64{1, 2, 3, 3, 4}, w.raised("bob", "7"))
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints WHERE incarnation = 'second'"))
}

// A source that does not answer stops the partition with a hole alone: the others go on, with no more than the pool of 5.
func TestConsume_ASourceThatHangsStopsOnlyWhatNeedsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	i := w.start()
	w.source.say("7", "a")
	w.stored()
	w.source.hangs.Store(true)
	w.source.chained(w.source.append("7", "missing")...)
	w.source.say("7", "behind it")
	for _, c := range conversations(30) {
		w.source.say(c, "x")
	}
	w.eventually("other partitions go on", func() bool {
		return w.number("SELECT count(DISTINCT body) FROM notification.events") >= 10
	})
	w.eventually("it is reported", func() bool { err, ok := i.waiting.Load("chat"); return ok && err != nil })
	w.source.hangs.Store(false)
	w.stored()
	require.Equal(t, upTo(3), w.raised("bob", "7"))
	for _, c := range conversations(30) {
		require.Equal(t, upTo(1), w.raised("bob", c))
	}
}

//go:build integration

package consume_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/owner/consume"
)

// One instance consumes a partition and has parked a stream. While further events arrive, an operator retries the
// stream on another instance. Each event must be applied once and in order.
func TestConsume_ARetryOnAnotherInstanceWhileEventsArrive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	other := w.start()
	w.source.say("7", "choke")
	w.eventually("it is parked", func() bool { return w.number("SELECT count(*) FROM notification.parked_streams") == 1 })
	w.fails.Store(false)
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

// Many events of a parked stream wait, and events of another stream are between them in the log. A retry must apply all
// events of the parked stream, and a drop all but the first, even if they fill one transaction or several exactly.
func TestConsume_ARetryAppliesMoreEventsThanATransactionHas(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{255, 511, 600} {
		for _, drop := range []bool{false, true} {
			t.Run(fmt.Sprint(n, drop), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				i := w.start()
				w.source.say("7", "choke")
				w.eventually("it is parked", func() bool { return w.number("SELECT count(*) FROM notification.parked_streams") == 1 })
				w.fails.Store(false)
				for range n {
					w.source.say("7", "x")
					w.source.say("8", "x")
				}
				w.eventually("all wait", func() bool { return w.number("SELECT max(waiting) FROM notification.parked_streams") == n })
				w.stored()
				done, err := i.consumer.Resolve(t.Context(), "conversation:7", 1, drop)
				require.NoError(t, err)
				require.Empty(t, done.Problem)
				require.Zero(t, done.Left)
				want := upTo(catalog.Version(n) + 1)
				if drop {
					want = want[1:]
				}
				require.Equal(t, want, w.raised("bob", "7"))
				require.EqualValues(t, len(want), done.Applied)
				w.source.say("7", "after it")
				w.stored()
				require.Len(t, w.raised("bob", "7"), len(want)+1, "the stream is no longer parked")
			})
		}
	}
}

// The source's database was restored and has lost its last commits, so the source publishes in a new incarnation. The
// events of the new incarnation must be applied, although their versions were used before. No event may be applied
// twice.
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
	require.Equal(t, []catalog.Version{1, 2, 3, 3, 4}, w.raised("bob", "7"))
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints WHERE incarnation = 'second'"))
}

// One partition of a topic has a gap, and the source does not answer the request for the missing events. The other
// partitions must still be consumed, although the pool has only 5 connections.
func TestConsume_ASourceThatHangsStopsOnlyPartitionsWithAGap(t *testing.T) {
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
	w.eventually("other partitions are consumed", func() bool {
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

// All partitions of one source's topic have a gap, and this source does not answer. The topic of another source must
// still be consumed, although both consumers share a pool of 5 connections.
func TestConsume_AHangingSourceDoesNotStopAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	feed := w.newSource("feed", "post-events")
	w.startWith(func(o *consume.Options) { o.Source, o.Topic, o.Owner = "feed", "post-events", feed })
	for _, c := range conversations(20) {
		w.source.say(c, "x")
	}
	w.stored()
	w.source.hangs.Store(true)
	for _, c := range conversations(20) {
		w.source.chained(w.source.append(c, "missing")...)
		w.source.say(c, "behind it")
	}
	w.eventually("all partitions wait for chat", func() bool { return w.source.asked.Load() >= 3 })
	for range 10 {
		for _, c := range conversations(20) {
			feed.say(c, "x")
		}
	}
	feed.awaitStored()
	require.EqualValues(t, 200, w.number("SELECT count(*) FROM notification.events WHERE cause LIKE 'feed-%'"))
	require.EqualValues(t, 20, w.number("SELECT count(*) FROM notification.events WHERE cause LIKE 'chat-%'"))
	w.source.hangs.Store(false)
	w.stored()
	require.EqualValues(t, 60, w.number("SELECT count(*) FROM notification.events WHERE cause LIKE 'chat-%'"))
}

// Two instances hold the same partition, and the second has already applied a part of the batch that the first commits.
// The commit of the first must be refused, and its applier must end. Then consumption must continue from the stored
// checkpoint, so that each event is applied once. In this test, the first instance's Options.Commit also does the work
// of the second.
func TestConsume_ReleasesAPartitionThatAnotherInstanceAdvanced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var i *instance
	var moved, stale atomic.Int64
	i = w.startWith(func(o *consume.Options) {
		o.Commit = func(ctx context.Context, _ []consume.Command, write eventlog.Write) (eventlog.Committed, error) {
			if len(write.Appends) > 1 && moved.Add(1) == 1 {
				other := write
				advance := *write.Advance
				advance.To.Position = advance.From.Position + 1
				other.Appends, other.Advance = write.Appends[:1], &advance
				if _, err := i.log.Commit(ctx, other); err != nil {
					t.Error(err)
				}
			}
			committed, err := i.log.Commit(ctx, write)
			var lost *inbox.StaleCheckpointError
			if errors.As(err, &lost) {
				stale.Add(1)
			}
			return committed, err
		}
	})
	w.source.say("7", make([]string, 200)...)
	w.awaitRaised("7", upTo(200)...)
	w.source.say("7", "more")
	w.stored()
	require.Equal(t, upTo(201), w.raised("bob", "7"))
	require.EqualValues(t, 1, stale.Load(), "batches that were refused")
}

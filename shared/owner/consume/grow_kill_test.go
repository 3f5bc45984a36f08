//go:build integration

package consume_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/retry"
)

// killer kills an instance at each step by which a consumer passes the fence of a growing topic. There are five steps:
//   - "behind": partition 0 has not reached the fence, and partitions 1 to 3 wait for partition 0,
//   - "cross 0", "cross 1" and "cross 2": an old partition crosses the fence,
//   - "begin": the new partition 3 begins.
type killer struct {
	*world
	after  bool       // kill after the commit instead of before it
	waits  chan int64 // partitions that have reached the fence and wait there
	killed chan struct{}

	mu      sync.Mutex
	growing bool
	used    map[string]bool
}

// start runs an instance. When the instance reaches a step at which no instance has been killed yet, it sends a value
// to the channel k.killed and commits nothing more, except that it first makes the commit of that step if k.after is
// set. Then the test kills the instance.
func (k *killer) start() *instance {
	k.t.Helper()
	dead := false
	return k.startWith(func(o *consume.Options) {
		log := o.Log
		o.Logger = slog.New(&watch{o.Logger.Handler(), k.waits})
		o.Commit = func(ctx context.Context, _ []consume.Command, w eventlog.Write) (eventlog.Committed, error) {
			k.mu.Lock()
			name, first := k.moment(w.Advance, len(w.Appends), dead)
			was := dead
			dead = dead || first && name != "behind"
			k.mu.Unlock()
			if w.Advance.To.Epoch == 2 && k.number(`SELECT count(*) FROM notification.checkpoints
				WHERE partition < 3 AND epoch = 1 AND position < (SELECT fence FROM notification.fences)`) > 0 {
				k.t.Error("a partition crosses the fence before the checkpoints of all old ones have reached it")
				k.waits <- int64(w.Advance.Of.Partition)
			}
			if !was && !first {
				return log.Commit(ctx, w)
			}
			if first && name == "behind" {
				for waiting := map[int64]bool{}; len(waiting) < 3 && ctx.Err() == nil; {
					select {
					case n := <-k.waits:
						waiting[n] = true
					case <-ctx.Done():
					}
				}
				k.mu.Lock()
				dead = true
				k.mu.Unlock()
			}
			if first && k.after {
				if _, err := log.Commit(ctx, w); err != nil {
					k.t.Error(err)
				}
			}
			if first {
				k.killed <- struct{}{}
			}
			<-ctx.Done()
			return eventlog.Committed{}, retry.Unavailable("postgres", ctx.Err())
		}
	})
}

// moment returns the name of the step to which a commit belongs. The result first is true if the instance is to be
// killed at this step.
func (k *killer) moment(a *inbox.Advance, effects int, dead bool) (name string, first bool) {
	switch {
	case a.To.Epoch == 1 && a.Of.Partition == 0 && effects > 0:
		name = "behind"
	case a.From.Epoch < a.To.Epoch:
		name = fmt.Sprint("cross ", a.Of.Partition)
	case a.Of.Partition == 3:
		name = "begin"
	}
	first = k.growing && !dead && name != "" && !k.used[name]
	if first {
		k.used[name] = true
	}
	return name, first
}

// watch is a slog handler that records which partitions wait at the fence.
type watch struct {
	slog.Handler
	waits chan int64
}

func (h *watch) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "the partition waits until the checkpoints") {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "partition" {
				h.waits <- a.Value.Int64()
			}
			return true
		})
	}
	return h.Handler.Handle(ctx, r)
}

func (h *watch) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &watch{h.Handler.WithAttrs(attrs), h.waits}
}

// A topic grows from 3 to 4 partitions while events are published, and the instance that consumes it is killed at every
// step. Each event must be applied once, and the events of a stream in order. No event above the fence may be applied
// before the checkpoints of all old partitions have reached the fence.
func TestConsume_KilledAtEveryStepWhileATopicGrows(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(map[bool]string{false: "before the commit", true: "after the commit"}[after], func(t *testing.T) {
			t.Parallel()
			k := &killer{world: newWorld(t), after: after, waits: make(chan int64, 1000), killed: make(chan struct{}, 5),
				used: map[string]bool{}}
			names := conversations(20)
			round := func() {
				for _, c := range names {
					k.source.say(c, "hello")
				}
			}
			i := k.start()
			round()
			k.stored()
			k.mu.Lock()
			k.growing = true
			k.mu.Unlock()
			round()
			meshtest.GrowTopic(t, k.kafka, topic, 4)
			k.source.grow(4)
			for range 5 {
				round()
				select {
				case <-k.killed:
				case <-time.After(2 * time.Minute):
					t.Fatal("the next step did not happen in time")
				}
				i.kill()
				i = k.start()
			}
			k.stored()
			for _, c := range names {
				require.Equal(t, upTo(7), k.raised("bob", c), "conversation %s", c)
			}
			require.EqualValues(t, 4, k.number("SELECT count(*) FROM notification.checkpoints WHERE partitions = 4 AND epoch = 2"))
			k.mu.Lock()
			defer k.mu.Unlock()
			require.Len(t, k.used, 5)
		})
	}
}

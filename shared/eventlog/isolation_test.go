package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/retry"
)

// A hundred times a second, Commit is called with a write that fails because of its data, while other writes are
// committed. Once a write has failed, its next attempts must have transactions of their own. The other writes must
// succeed.
func TestCommit_IsolatesInvalidData(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const writers, each, least = 8, 30, 100
	ctx, done := context.WithCancel(t.Context())
	defer done()
	var all, others sync.WaitGroup
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	all.Go(func() {
		for n := 0; ctx.Err() == nil || n < least; n++ { // at least 100 times, and until the others have finished
			<-tick.C
			all.Go(func() {
				w := said("bad", fmt.Sprint("bad", n%50)) // only 50 different ids, so most writes are retries
				w.Commands[0].Correlation = "\x00"
				var own *WriteError
				if _, err := l.Commit(t.Context(), w); !errors.As(err, &own) || errors.Is(err, retry.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
	})
	var good atomic.Int64
	for w := range writers {
		others.Go(func() {
			for i := range each {
				if _, err := l.Commit(t.Context(), said(fmt.Sprint(w), fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
				}
				good.Add(1)
			}
		})
	}
	others.Wait()
	done()
	all.Wait()
	if head, err := l.Head(t.Context()); err != nil || head != catalog.Position(good.Load()) {
		t.Errorf("head %d %v, %d were committed", head, err, good.Load())
	}
}

func TestCommit_FindsTheFailingWriteAmongMany(t *testing.T) {
	t.Parallel()
	var writes []Write
	for i := range 20 {
		w := said(fmt.Sprint(i), "c"+fmt.Sprint(i))
		if i == 7 || i == 13 {
			w.Commands[0].Correlation = "\x00"
		}
		writes = append(writes, w)
	}
	url := database(t)
	_, errs := together(t, url, writes...)
	for i, err := range errs {
		if bad := i == 7 || i == 13; bad != (err != nil) {
			t.Errorf("write %d: %v", i, err)
		} else if bad {
			failsAs[*WriteError](t, err)
		}
	}
	if head, _ := instance(t, url).Head(t.Context()); head != 18 {
		t.Errorf("head %d", head)
	}
}

func TestQueue_AFailedWriteIsRetriedAlone(t *testing.T) {
	t.Parallel()
	q := newQueue()
	prepared := func(id string) *prepared {
		return &prepared{entries: []*entry{{command: true, actor: "alice", cause: id}}}
	}
	q.quarantine(prepared("bad"))
	for _, id := range []string{"a", "bad", "b"} {
		if err := q.put(&pendingWrite{ctx: t.Context(), prepared: prepared(id)}); err != nil {
			t.Fatal(err)
		}
	}
	together, alone := q.take()
	if len(together) != 2 || alone == nil || alone.prepared.entries[0].cause != "bad" {
		t.Fatalf("%d together, alone %+v", len(together), alone)
	}
}

// Two waiting writes have contexts that have ended; one of these writes is in quarantine. The method take must return
// neither of them.
func TestQueue_LeavesOutWritesWhoseContextHasEnded(t *testing.T) {
	t.Parallel()
	q := newQueue()
	reason := errors.New("the client is gone")
	ended, end := context.WithCancelCause(t.Context())
	end(reason)
	var writes []*pendingWrite
	for _, alone := range []bool{false, true} {
		pw := &pendingWrite{ctx: ended, selections: []Selection{{Stream: "conversation:1"}}, alone: alone,
			decide: func(context.Context, []Loaded) (Write, error) { panic("it is decided") }, outcome: make(chan writeOutcome, 1)}
		require.NoError(t, q.put(pw))
		writes = append(writes, pw)
	}
	waiting := &pendingWrite{ctx: t.Context(), prepared: &prepared{}, alone: true}
	require.NoError(t, q.put(waiting))
	together, alone := q.take()
	require.Empty(t, together)
	require.Same(t, waiting, alone)
	for _, pw := range writes {
		require.ErrorIs(t, (<-pw.outcome).err, reason)
	}
}

// The write that resolves a parked stream fails. When it is tried again, it must not be in a transaction with others.
func TestQueue_AFailedResolutionIsRetriedAlone(t *testing.T) {
	t.Parallel()
	q := newQueue()
	resolution := func(position catalog.Position) *prepared {
		return &prepared{inbox: inbox.Change{Resolution: &inbox.Resolution{Of: inbox.Parked{Source: "feed", Topic: "post-events",
			Stream: "post:1", Position: position}}}}
	}
	q.quarantine(resolution(7))
	require.True(t, q.isQuarantined(resolution(7)))
	require.False(t, q.isQuarantined(resolution(8)))
}

func TestCommit_RejectsInvalidWrites(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	for name, w := range map[string]Write{
		"an event of another stream": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c",
			Events: []proto.Message{sent("2", "m", "x")}}}},
		"a command instead of an event": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c",
			Events: []proto.Message{&chatv1.SendMessage{ConversationId: "1"}}}}},
		"text that is not UTF-8": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c",
			Events: []proto.Message{sent("1", "m", "\xff")}}}},
		"the same command id twice": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c"}, {CommandID: "c"}}},
		"refused with events": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c", Kind: envelope.Refused,
			Events: []proto.Message{sent("1", "m", "x")}}}},
	} {
		if _, err := l.Commit(t.Context(), w); err == nil {
			t.Errorf("%s was accepted", name)
		} else {
			failsAs[*WriteError](t, err)
		}
	}
}

package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

func TestCommit_TellsTheOutcomeAndKeepsIt(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	c := commit(t, l, said("1", "c1"))
	want := envelope.Result{Actor: "alice", CommandID: "c1", Type: "chat.send_message", Source: "chat",
		Stream: "conversation:1", Kind: envelope.Committed, Version: 1, Position: 1}
	if len(c.Results) != 1 || c.Results[0] != want || c.Version != 1 || c.Position != 1 {
		t.Fatalf("%+v", c)
	}
	got, found, err := l.Outcome(t.Context(), "alice", "c1")
	if err != nil || !found || got != want {
		t.Fatalf("%+v %v %v", got, found, err)
	}
	if _, found, err := l.Outcome(t.Context(), "bob", "c1"); found || err != nil {
		t.Fatalf("%v %v", found, err)
	}
}

func TestCommit_ARunOfCommandsHasAnOutcomeEach(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	c := commit(t, l, Write{Stream: "conversation:1", Commands: []Decided{
		{Actor: "alice", CommandID: "1", Type: "chat.start_group", Correlation: "x",
			Events: []proto.Message{started("1", "alice"), &chatv1.MemberAdded{ConversationId: "1", UserId: "bob"}}},
		{Actor: "bob", CommandID: "1", Type: "chat.leave", Kind: envelope.Refused, Code: refusal.NotAMember, Text: "no"},
		{Actor: "bob", CommandID: "2", Type: "chat.add_member"},
		{Actor: "bob", CommandID: "3", Type: "chat.send_message", Events: []proto.Message{sent("1", "m", "hi")}},
	}})
	var got []string
	for _, r := range c.Results {
		got = append(got, fmt.Sprint(r.Kind, r.Version, r.Position, r.Code))
	}
	if want := []string{"committed2 2", "refused2 2not_a_member", "unchanged2 2", "committed3 3"}; !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
	page, err := l.Read(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	for i, answers := range []bool{false, true, true} {
		e := page.Events[i]
		if e.Answers != answers || e.Version != int64(i+1) || e.ID != eventID("chat", "conversation:1", e.Version).String() {
			t.Errorf("event %d: %+v", i+1, e)
		}
	}
	if e := page.Events[0]; e.Correlation != "x" || e.Cause != "1" || e.Actor != "alice" {
		t.Errorf("%+v", e)
	}
}

// Two instances, many writers: versions and positions have no gap, and of each stream the versions follow the positions.
func TestCommit_VersionsAndPositionsAreDense(t *testing.T) {
	t.Parallel()
	url := database(t)
	instances := []*Log{running(t, url), running(t, url)}
	const writers, each = 24, 20
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if _, err := instances[w%2].Commit(t.Context(), said(fmt.Sprint(i%5), fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	page, err := instances[0].Read(t.Context(), Query{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Events) != writers*each || page.Head != writers*each {
		t.Fatalf("%d events, head %d", len(page.Events), page.Head)
	}
	versions := map[string]int64{}
	for i, e := range page.Events {
		versions[e.Stream]++
		if e.Position != int64(i+1) || e.Version != versions[e.Stream] {
			t.Fatalf("event %d: position %d, %s version %d", i+1, e.Position, e.Stream, e.Version)
		}
	}
}

// Somebody who asks for "position > last" all the time, while transactions of other kinds are held open, sees all.
func TestRead_SkipsNothingWhileTransactionsAreOpen(t *testing.T) {
	t.Parallel()
	url := database(t)
	instances := []*Log{running(t, url), running(t, url)}
	holder, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(context.Background())
	for _, sql := range []string{"BEGIN", "CREATE TABLE held (id int)", "INSERT INTO held VALUES (1)",
		"LOCK TABLE chat.outcomes IN ACCESS SHARE MODE"} {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	const writers, each = 8, 50
	var writing sync.WaitGroup
	var written atomic.Int64
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				if _, err := instances[w%2].Commit(t.Context(), said(fmt.Sprint(w), fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
				}
				written.Add(1)
			}
		})
	}
	last := int64(0)
	for last < writers*each && !t.Failed() {
		page, err := instances[0].Read(t.Context(), Query{After: last})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if e.Position != last+1 {
				t.Fatalf("after %d came %d", last, e.Position)
			}
			last = e.Position
		}
		if page.Complete != last || page.Head < last {
			t.Fatalf("complete %d, head %d, last %d", page.Complete, page.Head, last)
		}
	}
	writing.Wait()
}

// together hands writes in so that one transaction takes them all, in this order.
func together(t *testing.T, url string, writes ...Write) (committed []Committed, errs []error) {
	t.Helper()
	l := instance(t, url)
	committed, errs = make([]Committed, len(writes)), make([]error, len(writes))
	var all sync.WaitGroup
	for i, w := range writes {
		all.Go(func() { committed[i], errs[i] = l.Commit(t.Context(), w) })
		eventually(t, time.Second, "it waits", func() bool {
			l.queue.mu.Lock()
			defer l.queue.mu.Unlock()
			return len(l.queue.joining)+len(l.queue.alone) == i+1
		})
	}
	during(t, l.Run)
	all.Wait()
	return committed, errs
}

func TestCommit_WhoLosesFailsNobodyElse(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	commit(t, l, said("1", "before"))
	stale := said("1", "stale")
	stale.Expected = 0
	other := said("2", "c1")
	other.Commands[0].Actor = "bob"
	again := said("1", "first")
	reused := said("1", "before")
	reused.Commands[0].Type = "chat.leave"
	first := said("1", "first")
	first.Expected = 1
	second := said("1", "second")
	second.Expected = 1
	third := said("1", "third")
	third.Expected = 2
	committed, errs := together(t, url, first, stale, said("1", "before"), other, again, reused, second, third,
		said("1", "any"))
	for i, version := range map[int]int64{0: 2, 3: 1, 7: 3, 8: 4} {
		if errs[i] != nil || committed[i].Version != version {
			t.Errorf("member %d: %+v %v, want version %d", i, committed[i], errs[i], version)
		}
	}
	if e := failsAs[*ConflictError](t, errs[1]); e.Actual != 2 || e.Expected != 0 || e.Stream != "conversation:1" {
		t.Errorf("%+v", e)
	}
	if e := failsAs[*ConflictError](t, errs[6]); e.Actual != 2 || e.Expected != 1 {
		t.Errorf("%+v", e)
	}
	if r := failsAs[*RepeatedError](t, errs[2]).Outcomes[0]; r.Kind != envelope.Committed || r.Version != 1 || r.Position != 1 {
		t.Errorf("%+v", r)
	}
	if r := failsAs[*RepeatedError](t, errs[4]).Outcomes[0]; r != committed[0].Results[0] {
		t.Errorf("%+v, first %+v", r, committed[0].Results[0])
	}
	if r := failsAs[*RepeatedError](t, errs[5]).Outcomes[0]; r.Kind != envelope.Refused || r.Code != refusal.IDReused {
		t.Errorf("%+v", r)
	}
	if head, err := l.Head(t.Context()); head != 5 || err != nil {
		t.Errorf("head %d %v", head, err)
	}
}

func TestCommit_TheSameIDOfTwoUsersIsTwoCommands(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	mine, theirs := said("1", "c"), said("1", "c")
	theirs.Commands[0].Actor = "bob"
	commit(t, l, mine)
	if c := commit(t, l, theirs); c.Version != 2 {
		t.Fatalf("%+v", c)
	}
	elsewhere := said("2", "c")
	_, err := l.Commit(t.Context(), elsewhere)
	if r := failsAs[*RepeatedError](t, err).Outcomes[0]; r.Code != refusal.IDReused || r.Stream != "conversation:2" {
		t.Fatalf("%+v", r)
	}
	if r, _, err := l.Outcome(t.Context(), "alice", "c"); err != nil || r.Kind != envelope.Committed {
		t.Fatalf("the first outcome is gone: %+v %v", r, err)
	}
}

func TestCommit_ARefusalStays(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	refused := Write{Stream: "conversation:1", Expected: 0, Commands: []Decided{{Actor: "bob", CommandID: "c",
		Type: "chat.send_message", Kind: envelope.Refused, Code: refusal.NotAMember, Text: "you are not in it"}}}
	first := commit(t, l, refused).Results[0]
	_, err := running(t, url).Commit(t.Context(), said("1", "other"))
	if err != nil {
		t.Fatal(err)
	}
	later := said("1", "c")
	later.Commands[0].Actor = "bob"
	_, err = running(t, url).Commit(t.Context(), later)
	if r := failsAs[*RepeatedError](t, err).Outcomes[0]; r != first {
		t.Fatalf("%+v, first %+v", r, first)
	}
}

// A write that fails by its data, a hundred times a second: it is isolated, and the others do not notice.
func TestCommit_WhatFailsByItselfIsIsolated(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var bad atomic.Int64
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	all.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			<-tick.C
			all.Go(func() {
				w := said("bad", fmt.Sprint("bad", n%50)) // retried by their ids
				w.Commands[0].Correlation = "\x00"
				var own *MemberError
				if _, err := l.Commit(t.Context(), w); !errors.As(err, &own) || errors.Is(err, ErrAway) {
					t.Error(err)
				}
				bad.Add(1)
			})
		}
	})
	var longest [8]time.Duration
	var good atomic.Int64
	for w := range longest {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				begun := time.Now()
				if _, err := l.Commit(t.Context(), said(fmt.Sprint(w), fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
				}
				longest[w] = max(longest[w], time.Since(begun))
				good.Add(1)
			}
		})
	}
	all.Wait()
	t.Logf("%d failed, %d went on, the slowest in %v", bad.Load(), good.Load(), slices.Max(longest[:]))
	if bad.Load() < 100 || good.Load() < 200 || slices.Max(longest[:]) > time.Second {
		t.Error("the others were held up")
	}
	if head, err := l.Head(t.Context()); err != nil || head != good.Load() {
		t.Errorf("head %d %v, %d were committed", head, err, good.Load())
	}
}

func TestCommit_OfManyTheOneThatFailsIsFound(t *testing.T) {
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
			t.Errorf("member %d: %v", i, err)
		} else if bad {
			failsAs[*MemberError](t, err)
		}
	}
	if head, _ := instance(t, url).Head(t.Context()); head != 18 {
		t.Errorf("head %d", head)
	}
}

func TestQueue_WhatFailedOnceGoesAlone(t *testing.T) {
	t.Parallel()
	q := newQueue()
	prepared := func(id string) *prepared {
		return &prepared{entries: []*entry{{command: true, actor: "alice", cause: id}}}
	}
	q.suspect(prepared("bad"))
	for _, id := range []string{"a", "bad", "b"} {
		if err := q.put(&member{ctx: t.Context(), prepared: prepared(id)}); err != nil {
			t.Fatal(err)
		}
	}
	together, alone := q.take()
	if len(together) != 2 || alone == nil || alone.prepared.entries[0].cause != "bad" {
		t.Fatalf("%d together, alone %+v", len(together), alone)
	}
}

func TestCommit_RefusesWhatIsNoEventOfTheStream(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	for name, w := range map[string]Write{
		"another stream": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c",
			Events: []proto.Message{sent("2", "m", "x")}}}},
		"a command": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c",
			Events: []proto.Message{&chatv1.SendMessage{ConversationId: "1"}}}}},
		"text that is none": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c",
			Events: []proto.Message{sent("1", "m", "\xff")}}}},
		"twice the same": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c"}, {CommandID: "c"}}},
		"refused with events": {Stream: "conversation:1", Commands: []Decided{{CommandID: "c", Kind: envelope.Refused,
			Events: []proto.Message{sent("1", "m", "x")}}}},
	} {
		if _, err := l.Commit(t.Context(), w); err == nil {
			t.Errorf("%s was taken", name)
		} else {
			failsAs[*MemberError](t, err)
		}
	}
}

func TestCommit_AReadingGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	url := database(t)
	reading := func(version, previous int64, id string) Write {
		return Write{Expected: AnyVersion, Reading: &Reading{Source: "feed", Stream: "post:1", Version: version,
			Previous: previous}, Appends: []Append{
			{Stream: "conversation:1", Expected: AnyVersion, Actor: "feed", Cause: id, Events: []proto.Message{sent("1", id, "x")}},
			{Stream: "conversation:2", Expected: AnyVersion, Actor: "feed", Cause: id, Events: []proto.Message{sent("2", id, "x")}},
		}}
	}
	committed, errs := together(t, url, reading(1, 0, "a"), reading(2, 1, "b"), reading(2, 1, "b"), reading(5, 4, "gap"))
	if errs[0] != nil || errs[1] != nil || committed[1].Position != 4 {
		t.Fatalf("%+v %v", committed, errs)
	}
	for _, err := range errs[2:] {
		if e := failsAs[*StaleReadingError](t, err); e.Have != 2 {
			t.Errorf("%+v", e)
		}
	}
	l := running(t, url)
	if have, err := l.ReadingOf(t.Context(), "feed", "post:1"); have != 2 || err != nil {
		t.Errorf("%d %v", have, err)
	}
	if have, err := l.ReadingOf(t.Context(), "feed", "post:2"); have != 0 || err != nil {
		t.Errorf("%d %v", have, err)
	}
	commit(t, l, Write{Expected: AnyVersion, Reading: &Reading{Source: "feed", Stream: "post:1", Version: 9, Previous: 2}})
	if have, _ := l.ReadingOf(t.Context(), "feed", "post:1"); have != 9 {
		t.Errorf("%d", have)
	}
}

func TestCommitDeciding_NeverLoses(t *testing.T) {
	t.Parallel()
	url := database(t)
	instances := []*Log{running(t, url), running(t, url)}
	commit(t, instances[0], Write{Stream: "conversation:1", Commands: []Decided{{Actor: "alice", CommandID: "start",
		Type: "chat.start_group", Events: []proto.Message{started("1", "alice")}}}})
	const writers, each = 8, 10
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				_, err := instances[w%2].CommitDeciding(t.Context(), Selection{Stream: "conversation:1", Subjects: []string{"m"}},
					func(_ context.Context, loaded Loaded) (Write, error) {
						// Nothing but what was loaded says which number comes next.
						if loaded.Events[0].Type != "chat.conversation_started" || int64(len(loaded.Events)) != loaded.Version {
							return Write{}, fmt.Errorf("loaded %d events at version %d", len(loaded.Events), loaded.Version)
						}
						return Write{Commands: []Decided{{Actor: "alice", CommandID: fmt.Sprint(w, "-", i), Type: "chat.send_message",
							Events: []proto.Message{sent("1", "m", fmt.Sprint(loaded.Version))}}}}, nil
					})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	page, err := instances[0].Read(t.Context(), Query{Stream: "conversation:1"})
	if err != nil || len(page.Events) != 1+writers*each {
		t.Fatalf("%d events, %v", len(page.Events), err)
	}
	for _, e := range page.Events[1:] {
		var m chatv1.MessageSent
		if err := proto.Unmarshal(e.Body, &m); err != nil || m.Body != fmt.Sprint(e.Version-1) {
			t.Fatalf("version %d was decided at %s, %v", e.Version, m.Body, err)
		}
	}
}

func TestCommitDeciding_WhatGoesWrongIsItsOwn(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	mine := errors.New("mine")
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if _, err := l.Commit(t.Context(), said("1", fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	_, err := l.CommitDeciding(t.Context(), Selection{Stream: "conversation:2"},
		func(context.Context, Loaded) (Write, error) { return Write{}, mine })
	if !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	_, err = l.CommitDeciding(t.Context(), Selection{Stream: "conversation:2"},
		func(context.Context, Loaded) (Write, error) { panic("deciding") })
	failsAs[*MemberError](t, err)
	bad := func(context.Context, Loaded) (Write, error) {
		w := said("2", "bad")
		w.Commands[0].Correlation = "\x00"
		return w, nil
	}
	for range 2 {
		_, err = l.CommitDeciding(t.Context(), Selection{Stream: "conversation:2"}, bad)
		failsAs[*MemberError](t, err)
	}
	all.Wait()
}

// An instance that stands still while it holds the lock is ended by the server, and the others go on.
func TestCommit_GoesOnWhenTheHolderOfTheLockFreezes(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, frozen := running(t, url), instance(t, url)
	commit(t, l, said("1", "before"))
	tx := &transaction{log: frozen}
	var err error
	if tx.conn, err = frozen.o.Pool.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer tx.conn.Release()
	if err := tx.send(t.Context(), tx.guard()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	commit(t, l, said("1", "after"))
	took := time.Since(begun)
	t.Logf("went on after %v", took)
	if took < time.Second || took > 3*time.Second {
		t.Errorf("went on after %v, want about 2 s", took)
	}
	if _, err := tx.conn.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("the frozen transaction could still commit")
	}
}

// The same, when the holder's connection is busy rather than idle.
func TestCommit_GoesOnWhenTheHolderOfTheLockIsSlow(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, slow := running(t, url), instance(t, url)
	tx := &transaction{log: slow}
	var err error
	if tx.conn, err = slow.o.Pool.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer tx.conn.Release()
	b := tx.guard()
	b.Queue("SELECT pg_sleep(20)")
	ended := make(chan error, 1)
	go func() { ended <- tx.send(context.Background(), b) }()
	eventually(t, time.Second, "it holds the lock", func() bool {
		var held bool
		err := l.o.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')").Scan(&held)
		return err == nil && held
	})
	begun := time.Now()
	commit(t, l, said("1", "after"))
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("went on after %v", took)
	}
	if err := <-ended; err == nil || ofData(err) {
		t.Errorf("the slow transaction: %v", err)
	}
}

func TestCommit_ADatabaseThatIsAwayIsNoFaultOfTheWrite(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	commit(t, l, said("before", "c1"))
	killer := pool(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var away, done atomic.Int64
	for w := range 8 {
		all.Go(func() {
			for i := range 100 {
				for tries := 0; ; tries++ {
					c, err := l.Commit(t.Context(), said(fmt.Sprint(w), fmt.Sprint(w, "-", i)))
					var repeated *RepeatedError
					if errors.As(err, &repeated) && tries > 0 {
						c.Results = slices.Collect(maps.Values(repeated.Outcomes))
					} else if errors.Is(err, ErrAway) {
						away.Add(1)
						continue
					} else if err != nil {
						t.Error(err)
						return
					}
					if r := c.Results[0]; r.Kind != envelope.Committed || r.Version != int64(i+1) {
						t.Errorf("%+v", r)
					}
					done.Add(1)
					break
				}
			}
		})
	}
	all.Go(func() {
		for done.Load() < 800 && ctx.Err() == nil {
			_, _ = killer.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			sleep(ctx, 20*time.Millisecond)
		}
	})
	all.Wait()
	t.Logf("%d times away", away.Load())
	if away.Load() == 0 {
		t.Error("it was never away")
	}
	eventually(t, 5*time.Second, "all is written once", func() bool {
		head, err := l.Head(t.Context())
		return head == 801 && err == nil
	})
}

// cutting loses a connection's answers, after what was asked has arrived.
type cutting struct {
	net.Conn
	cut *atomic.Bool
}

func (c cutting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut.CompareAndSwap(true, false) {
		_ = c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// The connection is lost while the server commits: nobody knows whether it did, and the same writes again are answered
// with what it did.
func TestCommit_AnUnknownCommitIsResolvedByIDs(t *testing.T) {
	t.Parallel()
	url := database(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	var cut atomic.Bool
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return cutting{c, &cut}, err
	}
	lossy, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lossy.Close)
	var armed atomic.Bool
	l := instance(t, url, func(o *Options) {
		o.Pool = lossy
		o.Now = func() time.Time { // asked just before the last round trip of a transaction
			if armed.CompareAndSwap(true, false) {
				cut.Store(true)
			}
			return time.Now()
		}
	})
	// Nobody else's answers may be lost.
	during(t, func(ctx context.Context) error { l.commitAll(ctx); return nil })
	reading := func(stream string) *Reading { return &Reading{Source: "feed", Stream: stream, Version: 1} }
	command := said("1", "c")
	reaction := Write{Expected: AnyVersion, Reading: reading("post:1"), Appends: []Append{{Stream: "conversation:2",
		Expected: AnyVersion, Events: []proto.Message{sent("2", "m", "x")}}}}
	for i, w := range []Write{command, reaction} {
		// At first a connection's statements are prepared.
		commit(t, l, said("before", fmt.Sprint("before", i)))
		commit(t, l, Write{Expected: AnyVersion, Reading: reading(fmt.Sprint("before", i))})
		armed.Store(true)
		if _, err := l.Commit(t.Context(), w); !errors.Is(err, ErrAway) {
			t.Fatalf("got %v", err)
		}
	}
	eventually(t, 5*time.Second, "both are committed", func() bool {
		head, err := l.Head(t.Context())
		return err == nil && head == 4
	})
	_, err = l.Commit(t.Context(), command)
	if r := failsAs[*RepeatedError](t, err).Outcomes[0]; r.Kind != envelope.Committed || r.Version != 1 || r.Position != 2 {
		t.Errorf("%+v", r)
	}
	_, err = l.Commit(t.Context(), reaction)
	if e := failsAs[*StaleReadingError](t, err); e.Have != 1 {
		t.Errorf("%+v", e)
	}
	if head, err := l.Head(t.Context()); head != 4 || err != nil {
		t.Errorf("head %d %v", head, err)
	}
}

func TestRun_WhatWaitsAtTheEndIsAnswered(t *testing.T) {
	t.Parallel()
	l := instance(t, database(t))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	commit(t, l, said("1", "c1"))
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, err := l.Commit(t.Context(), said("1", "c2")); !errors.Is(err, ErrAway) {
		t.Fatalf("got %v", err)
	}
}

func TestPruneOutcomes_KeepsWhatIsYounger(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var clock atomic.Pointer[time.Time]
	clock.Store(&now)
	l := running(t, database(t), func(o *Options) { o.Now = func() time.Time { return *clock.Load() } })
	commit(t, l, said("1", "old"))
	later := now.Add(20 * 24 * time.Hour)
	clock.Store(&later)
	commit(t, l, said("1", "young"))
	later = now.Add(31 * 24 * time.Hour)
	clock.Store(&later)
	if removed, err := l.PruneOutcomes(t.Context(), outcomesKept); removed != 1 || err != nil {
		t.Fatalf("%d %v", removed, err)
	}
	if _, found, _ := l.Outcome(t.Context(), "alice", "young"); !found {
		t.Fatal("the young one is gone")
	}
}

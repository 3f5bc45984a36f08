package eventlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func TestCommit_ReturnsTheOutcomeAndStoresIt(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	c := commit(t, l, said("1", "c1"))
	want := envelope.Outcome{Actor: "alice", CommandID: "c1", Type: "chat.send_message", Source: "chat",
		Stream: "conversation:1", Kind: envelope.Committed, Version: 1, Position: 1}
	if len(c.Outcomes) != 1 || c.Outcomes[0] != want || c.Version != 1 || c.Position != 1 {
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

func TestCommit_WaitsForTheDiskIfTheDefaultIsOff(t *testing.T) {
	t.Parallel()
	for _, set := range []struct{ database, want string }{{"off", "on"}, {"remote_apply", "remote_apply"}} {
		url := database(t)
		p := pool(t, url)
		for _, statement := range []string{
			"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = " + set.database + "', current_database()); END $$",
			"CREATE TABLE commits (synchronous text)",
			"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN " +
				"INSERT INTO public.commits VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
		} {
			if _, err := p.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		l := running(t, url) // opened after ALTER DATABASE, so that its connections get the setting
		if _, err := p.Exec(t.Context(), "CREATE TRIGGER note AFTER INSERT ON chat.events EXECUTE FUNCTION note()"); err != nil {
			t.Fatal(err)
		}
		commit(t, l, said("1", "c1"))
		var got string
		if err := p.QueryRow(t.Context(), "SELECT synchronous FROM commits").Scan(&got); err != nil || got != set.want {
			t.Errorf("the database has %s, a commit has %q: %v", set.database, got, err)
		}
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
	for _, r := range c.Outcomes {
		got = append(got, fmt.Sprint(r.Kind, r.Version, r.Position, r.Code))
	}
	want := []string{"committed2 2", "refused2 2not_a_member", "unchanged2 2", "committed3 3"}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
	page, err := l.Read(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	for i, answers := range []bool{false, true, true} {
		e := page.Events[i]
		if e.Answers != answers || e.Version != catalog.Version(i+1) || e.ID != eventID("chat", incarnation{}, "conversation:1", e.Version).String() {
			t.Errorf("event %d: %+v", i+1, e)
		}
	}
	if e := page.Events[0]; e.Correlation != "x" || e.Cause != "1" || e.Actor != "alice" {
		t.Errorf("%+v", e)
	}
}

// Many writers commit on two instances. Positions must have no gaps. The versions of each stream must have no gaps
// either, and must ascend with the positions.
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
	versions := map[string]catalog.Version{}
	for i, e := range page.Events {
		versions[e.Stream]++
		if e.Position != catalog.Position(i+1) || e.Version != versions[e.Stream] {
			t.Fatalf("event %d: position %d, %s version %d", i+1, e.Position, e.Stream, e.Version)
		}
	}
}

// A reader repeatedly reads the events above the last position that it has read, while two instances commit and another
// session keeps a transaction open. The reader must see every event.
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
	last := catalog.Position(0)
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

// together commits writes in one transaction, in the given order.
func together(t *testing.T, url string, writes ...Write) (committed []Committed, errs []error) {
	t.Helper()
	return togetherIn(t, instance(t, url), writes...)
}

func togetherIn(t *testing.T, l *Log, writes ...Write) (committed []Committed, errs []error) {
	t.Helper()
	committed, errs = make([]Committed, len(writes)), make([]error, len(writes))
	var all sync.WaitGroup
	for i, w := range writes {
		all.Go(func() { committed[i], errs[i] = l.Commit(t.Context(), w) })
		meshtest.Eventually(t, "the write waits", func() bool {
			l.queue.mu.Lock()
			defer l.queue.mu.Unlock()
			return len(l.queue.joining)+len(l.queue.alone) == i+1
		})
	}
	during(t, l.Run)
	all.Wait()
	return committed, errs
}

func TestCommit_AConflictFailsOnlyItsWrite(t *testing.T) {
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
	for i, version := range map[int]catalog.Version{0: 2, 3: 1, 7: 3, 8: 4} {
		if errs[i] != nil || committed[i].Version != version {
			t.Errorf("write %d: %+v %v, want version %d", i, committed[i], errs[i], version)
		}
	}
	if e := failsAs[*ConflictError](t, errs[1]); e.Actual != 2 || e.Expected != 0 || e.Stream != "conversation:1" {
		t.Errorf("%+v", e)
	}
	if e := failsAs[*ConflictError](t, errs[6]); e.Actual != 2 || e.Expected != 1 {
		t.Errorf("%+v", e)
	}
	r := failsAs[*RepeatedError](t, errs[2]).Outcomes[0]
	if r.Kind != envelope.Committed || r.Version != 1 || r.Position != 1 {
		t.Errorf("%+v", r)
	}
	if r := failsAs[*RepeatedError](t, errs[4]).Outcomes[0]; r != committed[0].Outcomes[0] {
		t.Errorf("%+v, first %+v", r, committed[0].Outcomes[0])
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

func TestCommit_ARepeatedCommandGetsTheSameRefusal(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	refused := Write{Stream: "conversation:1", Expected: 0, Commands: []Decided{{Actor: "bob", CommandID: "c",
		Type: "chat.send_message", Kind: envelope.Refused, Code: refusal.InvalidField, Text: "user_id is your own", Field: "user_id"}}}
	first := commit(t, l, refused).Outcomes[0]
	_, err := running(t, url).Commit(t.Context(), said("1", "other"))
	if err != nil {
		t.Fatal(err)
	}
	later := said("1", "c")
	later.Commands[0].Actor = "bob"
	_, err = running(t, url).Commit(t.Context(), later)
	if r := failsAs[*RepeatedError](t, err).Outcomes[0]; r != first || r.Field != "user_id" {
		t.Fatalf("%+v, first %+v", r, first)
	}
	if r, found, err := l.Outcome(t.Context(), "bob", "c"); err != nil || !found || r.Field != "user_id" {
		t.Fatalf("%+v %v", r, err)
	}
}

func TestPruneOutcomes_KeepsYoungerOutcomes(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, said("1", "old"))
	commit(t, l, said("1", "young"))
	_, err := l.o.Pool.Exec(t.Context(), `UPDATE chat.outcomes
SET at = at - CASE command_id WHEN 'old' THEN interval '31 days' ELSE interval '11 days' END`)
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := l.PruneOutcomes(t.Context(), OutcomesKept); removed != 1 || err != nil {
		t.Fatalf("%d %v", removed, err)
	}
	if _, found, _ := l.Outcome(t.Context(), "alice", "young"); !found {
		t.Fatal("the newer outcome is gone")
	}
}

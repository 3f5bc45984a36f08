//go:build integration

package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner/consume"
)

// circle is an aggregate. No two circles may have the same name. When a member leaves a circle, the command also
// appends a note to the member's diary, which is another stream.
type circle struct {
	id      string
	members map[string]bool
}

func (c *circle) Decide(_ catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch m := command.(type) {
	case *toyv1.OpenCircle:
		return []proto.Message{&toyv1.CircleOpened{CircleId: c.id, UserIds: m.UserIds},
			catalog.Expecting{Message: &toyv1.NameTaken{Name: m.Name, CircleId: c.id},
				Otherwise: refusal.New("name_taken", "another circle has this name")}}, nil
	case *toyv1.LeaveCircle:
		if !c.members[m.UserId] {
			return nil, nil
		}
		return []proto.Message{&toyv1.CircleLeft{CircleId: c.id, UserId: m.UserId},
			&toyv1.NoteWritten{UserId: m.UserId, Text: "left " + c.id}}, nil
	}
	return nil, fmt.Errorf("%T", command)
}

func (c *circle) Evolve(_ catalog.Fact, event proto.Message) {
	switch e := event.(type) {
	case *toyv1.CircleOpened:
		for _, u := range e.UserIds {
			c.members[u] = true
		}
	case *toyv1.CircleLeft:
		delete(c.members, e.UserId)
	}
}

func (*circle) Forget() {}

// diary is an aggregate that numbers its notes. While its field wait is true, some texts make its decision wait, fail
// or panic.
type diary struct {
	user string
	n    catalog.Version
	wait *atomic.Bool
}

func (d *diary) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch text := command.(*toyv1.WriteNote).Text; {
	case d.wait.Load() && text == "wait":
		return nil, &refusal.NotYetError{Text: "the diary is not known yet"}
	case d.wait.Load() && text == "wait once":
		d.wait.Store(false)
		return nil, &refusal.NotYetError{Text: "the diary is not known yet"}
	case d.wait.Load() && text == "fail":
		return nil, errors.New("requested by the test")
	case d.wait.Load() && text == "panic":
		panic("requested by the test")
	}
	if by.Version != d.n {
		return nil, fmt.Errorf("decided at version %d with %d notes", by.Version, d.n)
	}
	return []proto.Message{&toyv1.NoteWritten{UserId: d.user, Text: command.(*toyv1.WriteNote).Text, Number: int64(d.n + 1)}}, nil
}

func (d *diary) Evolve(f catalog.Fact, _ proto.Message) { d.n = f.Version }
func (*diary) Forget()                                  {}

type bookmark struct {
	circle, user string
	newest       *toyv1.Marked
	evolved      *atomic.Int64
}

func (m *bookmark) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	c := command.(*toyv1.MarkRead)
	if c.UpTo <= m.newest.GetUpTo() {
		return nil, nil
	}
	return []proto.Message{&toyv1.Marked{CircleId: m.circle, UserId: m.user, UpTo: c.UpTo, Moves: m.newest.GetMoves() + 1,
		CircleVersion: int64(by.Room.Version), JoinedVersion: int64(by.Room.Joined), Members: int32(by.Room.Members)}}, nil
}

func (m *bookmark) Evolve(_ catalog.Fact, event proto.Message) {
	m.evolved.Add(1)
	m.newest = event.(*toyv1.Marked)
}
func (*bookmark) Forget() {}

// Merge merges commands in the circle "merging", unless the later one is for a lower place.
func (m *bookmark) Merge(earlier, later proto.Message) proto.Message {
	if m.circle != "merging" || later.(*toyv1.MarkRead).UpTo < earlier.(*toyv1.MarkRead).UpTo {
		return nil
	}
	return later
}

type bell struct {
	id     string
	until  time.Time // zero: no ring is scheduled
	rang   time.Time // when the newest BellRang was recorded
	onRing func(string, time.Time)
}

func (b *bell) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch m := command.(type) {
	case *toyv1.Ring:
		return []proto.Message{&toyv1.BellRang{BellId: b.id,
			Until: timestamppb.New(by.At.Add(time.Duration(m.Milliseconds) * time.Millisecond))}}, nil
	case *toyv1.Answer:
		if b.until.IsZero() {
			return nil, nil
		}
		return []proto.Message{&toyv1.BellAnswered{BellId: b.id}}, nil
	case *toyv1.Silence:
		if b.onRing != nil {
			b.onRing(b.id, by.At)
		}
		if b.until.IsZero() {
			return nil, nil
		}
		if strings.HasPrefix(b.id, "endless") {
			return []proto.Message{&toyv1.BellRang{BellId: b.id, Until: timestamppb.New(by.At.Add(-time.Hour))}}, nil
		}
		return []proto.Message{&toyv1.BellSilenced{BellId: b.id}}, nil
	}
	return nil, fmt.Errorf("%T", command)
}

func (b *bell) Evolve(f catalog.Fact, event proto.Message) {
	switch e := event.(type) {
	case *toyv1.BellRang:
		b.until, b.rang = e.Until.AsTime(), f.At()
	default:
		b.until = time.Time{}
	}
}
func (*bell) Forget() {}

type story struct{ id string }

func (s *story) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch c := command.(type) {
	case *toyv1.WritePage:
		return []proto.Message{&toyv1.PageWritten{StoryId: s.id, PageId: c.PageId, AuthorId: by.Actor}}, nil
	case *toyv1.TearPage:
		return []proto.Message{&toyv1.PageTorn{StoryId: s.id, PageId: c.PageId, AuthorId: by.Actor}}, nil
	}
	c := command.(*toyv1.ShowStory)
	return []proto.Message{&toyv1.StoryShown{StoryId: s.id, AuthorId: by.Actor, Text: c.Text,
		ExpiresAt: timestamppb.New(by.At.Add(time.Duration(c.Milliseconds) * time.Millisecond))}}, nil
}
func (*story) Evolve(catalog.Fact, proto.Message) {}
func (*story) Forget()                            {}

// toy is an instance of the toy service. It has a log and aggregates, but no Kafka.
type toy struct {
	t       *testing.T
	log     *eventlog.Log
	pool    *pgxpool.Pool
	catalog *catalog.Catalog
	d       *decider
	wait    atomic.Bool
	evolved atomic.Int64
	onRing  func(string, time.Time)
}

func newToy(t *testing.T, url string, onRing func(string, time.Time)) *toy {
	t.Helper()
	return newToyAt(t, url, onRing, time.Now)
}

// newToyAt is like newToy, but the function now is the clock of the instance.
func newToyAt(t *testing.T, url string, onRing func(string, time.Time), now func() time.Time) *toy {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	y := &toy{t: t, pool: pool, catalog: c, onRing: onRing}
	y.log, err = eventlog.Open(t.Context(), eventlog.Options{Owner: "toy", Pool: pool, Catalog: c, Now: now,
		Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- y.log.Run(ctx) }()
	y.d, err = newDecider(ctx, decider{log: y.log, catalog: c, tracer: noop.NewTracerProvider().Tracer(""),
		logger: slog.New(slog.DiscardHandler), waiting: func(string, error) {}, now: now,
		aggregates: map[string]NewState{
			"circle": func(s string) State { return &circle{id: strings.TrimPrefix(s, "circle:"), members: map[string]bool{}} },
			"diary":  func(s string) State { return &diary{user: strings.TrimPrefix(s, "diary:"), wait: &y.wait} },
			"bookmark": func(s string) State {
				parts := strings.Split(s, ":")
				return &bookmark{circle: parts[1], user: parts[2], evolved: &y.evolved}
			},
			"bell":  func(s string) State { return &bell{id: strings.TrimPrefix(s, "bell:"), onRing: y.onRing} },
			"story": func(s string) State { return &story{strings.TrimPrefix(s, "story:")} },
			"votes": func(string) State { return &votes{voted: map[string]bool{}, evolved: &y.evolved} },
		}})
	require.NoError(t, err)
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
		y.d.mailboxes.wait()
	})
	return y
}

var ids atomic.Int64

func (y *toy) pending(actor string, m proto.Message) *pendingCommand {
	declared, ok := y.catalog.CommandOf(m)
	require.True(y.t, ok)
	id := fmt.Sprint("c", ids.Add(1))
	return &pendingCommand{command: envelope.Command{ID: id, Type: declared.Name, Actor: actor,
		Stream: declared.Stream(m, catalog.Origin{Actor: actor, CommandID: id})}, declared: declared, message: m,
		trace: context.Background(), outcome: make(chan commandOutcome, 1)}
}

func (y *toy) do(actor string, m proto.Message) envelope.Outcome {
	y.t.Helper()
	pc := y.pending(actor, m)
	y.d.enqueue(pc)
	outcome := <-pc.outcome
	require.NoError(y.t, outcome.err)
	return outcome.Outcome
}

func (y *toy) events(stream string) []envelope.Event {
	y.t.Helper()
	page, err := y.log.Read(y.t.Context(), eventlog.Query{Stream: stream, Limit: 1000})
	require.NoError(y.t, err)
	return page.Events
}

func (y *toy) count(sql string, args ...any) (n int) {
	y.t.Helper()
	require.NoError(y.t, y.pool.QueryRow(y.t.Context(), sql, args...).Scan(&n))
	return n
}

func TestDecide_OnlyMembersOfAnotherStreamsRoom(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.do("ann", &toyv1.OpenCircle{CircleId: "7", Name: "seven", UserIds: []string{"ann", "bob"}})
	require.Equal(t, envelope.Committed, y.do("bob", &toyv1.MarkRead{CircleId: "7", UpTo: 1}).Kind)
	stranger := y.do("eve", &toyv1.MarkRead{CircleId: "7", UpTo: 1})
	require.Equal(t, envelope.Refused, stranger.Kind)
	require.Equal(t, refusal.NotAMember, stranger.Code)
	require.Equal(t, "you are not a member of this circle", stranger.Text)
	y.do("bob", &toyv1.LeaveCircle{CircleId: "7", UserId: "bob"})
	require.Equal(t, refusal.NotAMember, y.do("bob", &toyv1.MarkRead{CircleId: "7", UpTo: 2}).Code)
	require.Len(t, y.events("bookmark:7:bob"), 1)
}

// A command declares that its decision needs facts about a circle. A decision gets those of the circle at that moment,
// also if it is made under the log's lock.
func TestDecide_GetsFactsAboutTheRoomOfMemberOf(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.do("ann", &toyv1.OpenCircle{CircleId: "7", Name: "seven", UserIds: []string{"ann", "bob", "cid", "dan"}})
	mark := func(upTo int64) *toyv1.Marked {
		require.Equal(t, envelope.Committed, y.do("ann", &toyv1.MarkRead{CircleId: "7", UpTo: upTo}).Kind)
		events, marked := y.events("bookmark:7:ann"), &toyv1.Marked{}
		require.NoError(t, proto.Unmarshal(events[len(events)-1].Body, marked))
		return marked
	}
	facts := func(m *toyv1.Marked) []int64 { return []int64{m.CircleVersion, m.JoinedVersion, int64(m.Members)} }
	require.Equal(t, []int64{1, 1, 3}, facts(mark(1)), "members are counted up to 3")
	y.do("bob", &toyv1.LeaveCircle{CircleId: "7", UserId: "bob"})
	y.do("cid", &toyv1.LeaveCircle{CircleId: "7", UserId: "cid"})
	require.Equal(t, []int64{3, 1, 2}, facts(mark(2)))

	y.do("dan", &toyv1.LeaveCircle{CircleId: "7", UserId: "dan"})
	pc := y.pending("ann", &toyv1.MarkRead{CircleId: "7", UpTo: 3})
	rest, err := y.d.insideCommit("bookmark:7:ann", []*pendingCommand{pc})
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Equal(t, envelope.Committed, (<-pc.outcome).Kind)
	events, marked := y.events("bookmark:7:ann"), &toyv1.Marked{}
	require.NoError(t, proto.Unmarshal(events[len(events)-1].Body, marked))
	require.Equal(t, []int64{4, 1, 1}, facts(marked))
}

// Several commands wait for one stream, in two batches. In the first batch, one command cannot be merged with the
// commands before it. In the second batch, one command is a repeat, and one has expired. Each batch must lead to
// exactly one event, and each command must get an outcome of its own.
func TestDecide_MergesTheCommandsOfARun(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.do("ann", &toyv1.OpenCircle{CircleId: "merging", Name: "m", UserIds: []string{"ann"}})
	decide := func(batch ...*pendingCommand) (kinds []envelope.Kind) {
		y.d.decideAll("bookmark:merging:ann", batch)
		for _, pc := range batch {
			outcome := <-pc.outcome
			require.NoError(t, outcome.err)
			kinds = append(kinds, outcome.Kind)
		}
		return kinds
	}
	var batch []*pendingCommand
	for _, upTo := range []int64{3, 5, 8, 6, 7} {
		batch = append(batch, y.pending("ann", &toyv1.MarkRead{CircleId: "merging", UpTo: upTo}))
	}
	const committed, unchanged = envelope.Committed, envelope.Unchanged
	require.Equal(t, []envelope.Kind{committed, unchanged, unchanged, unchanged, unchanged}, decide(batch...))
	events, marked := y.events("bookmark:merging:ann"), &toyv1.Marked{}
	require.Len(t, events, 1)
	require.NoError(t, proto.Unmarshal(events[0].Body, marked))
	require.EqualValues(t, 8, marked.UpTo)
	require.EqualValues(t, 5, y.count(`SELECT count(*) FROM toy.outcomes WHERE type = 'toy.mark_read'`))

	// A command that has its outcome already, or is refused, has no effect on the others.
	again := y.pending("ann", &toyv1.MarkRead{CircleId: "merging", UpTo: 8})
	again.command.ID = batch[2].command.ID
	late := y.pending("ann", &toyv1.MarkRead{CircleId: "merging", UpTo: 99})
	late.command.Expires = time.Now().Add(-time.Minute)
	got := decide(y.pending("ann", &toyv1.MarkRead{CircleId: "merging", UpTo: 9}), again, late)
	require.Equal(t, []envelope.Kind{committed, unchanged, envelope.Refused}, got)
	events = y.events("bookmark:merging:ann")
	require.NoError(t, proto.Unmarshal(events[1].Body, marked))
	require.EqualValues(t, 9, marked.UpTo)
}

// A user is removed from a circle while the user's commands are decided on two instances. No command of the user may be
// committed after the removal.
func TestDecide_CommitsNothingAfterARemoval(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	one, two := newToy(t, url, nil), newToy(t, url, nil)
	for round := range 20 {
		id := fmt.Sprint(round)
		one.do("ann", &toyv1.OpenCircle{CircleId: id, Name: "n" + id, UserIds: []string{"ann", "bob"}})
		var all sync.WaitGroup
		for i := range 8 {
			y := []*toy{one, two}[i%2]
			all.Go(func() { y.do("bob", &toyv1.MarkRead{CircleId: id, UpTo: int64(i) + 1}) })
		}
		all.Go(func() { two.do("ann", &toyv1.LeaveCircle{CircleId: id, UserId: "bob"}) })
		all.Wait()
	}
	require.Zero(t, one.count(`SELECT count(*) FROM toy.events m JOIN toy.events l
ON l.type = 'toy.circle_left' AND l.stream = 'circle:' || split_part(m.stream, ':', 2)
WHERE m.type = 'toy.marked' AND m.position > l.position`))
}

func TestDecide_WritesToTwoStreamsAtOnce(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	first := y.do("ann", &toyv1.OpenCircle{CircleId: "1", Name: "same", UserIds: []string{"ann", "bob"}})
	require.Equal(t, envelope.Committed, first.Kind)
	require.EqualValues(t, 2, first.Position, "waiting for the outcome's position waits for both events")
	second := y.do("ann", &toyv1.OpenCircle{CircleId: "2", Name: "same", UserIds: []string{"ann"}})
	require.Equal(t, "name_taken", second.Code)
	require.Empty(t, y.events("circle:2"))
	// When bob leaves, the circle appends an event to bob's diary. This makes the cached state of the diary outdated,
	// so the next decision must load the diary again.
	y.do("bob", &toyv1.WriteNote{UserId: "bob", Text: "a"})
	y.do("bob", &toyv1.LeaveCircle{CircleId: "1", UserId: "bob"})
	require.EqualValues(t, 3, y.do("bob", &toyv1.WriteNote{UserId: "bob", Text: "b"}).Version)
	require.Len(t, y.events("diary:bob"), 3)
}

// A stream has 2,000 events, and each contains the whole value, like a counter. A decision must load only the newest
// event.
func TestDecide_ACounterLoadsItsNewestEventAlone(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.do("ann", &toyv1.OpenCircle{CircleId: "7", Name: "seven", UserIds: []string{"ann"}})
	var all []*pendingCommand
	for i := range 2000 {
		pc := y.pending("ann", &toyv1.MarkRead{CircleId: "7", UpTo: int64(i) + 1})
		all = append(all, pc)
		y.d.enqueue(pc)
	}
	for _, pc := range all {
		require.NoError(t, (<-pc.outcome).err)
	}
	y.d.states.take("bookmark:7:ann")
	y.evolved.Store(0)
	require.EqualValues(t, 2001, y.do("ann", &toyv1.MarkRead{CircleId: "7", UpTo: 5000}).Version)
	require.EqualValues(t, 2, y.evolved.Load(), "one loaded and one decided event")
	moves := &toyv1.Marked{}
	page, err := y.log.Read(t.Context(), eventlog.Query{Stream: "bookmark:7:ann", AfterVersion: 2000})
	require.NoError(t, err)
	require.NoError(t, proto.Unmarshal(page.Events[0].Body, moves))
	require.EqualValues(t, 2001, moves.Moves)
}

// Events have the time of the log's clock. This clock must never go back, even if the newest event is in the future.
// The time of a decision must not be before the events on which the decision is based, and not after the events that
// the decision returns.
func TestDecide_UsesTheLogsClock(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.do("ann", &toyv1.Ring{BellId: "7", Milliseconds: 60_000})
	_, err := y.pool.Exec(t.Context(), `UPDATE toy.events SET time = time + interval '1 hour'`)
	require.NoError(t, err)
	y.do("ann", &toyv1.Ring{BellId: "8", Milliseconds: 60_000})
	events := append(y.events("bell:7"), y.events("bell:8")...)
	require.False(t, events[1].Time.Before(events[0].Time), "%v before %v", events[1].Time, events[0].Time)
	rang := &toyv1.BellRang{}
	y.d.states.take("bell:7")
	y.do("ann", &toyv1.Ring{BellId: "7", Milliseconds: 0})
	events = y.events("bell:7")
	require.NoError(t, proto.Unmarshal(events[1].Body, rang))
	require.False(t, rang.Until.AsTime().Before(events[0].Time), "decided before an event of the stream")
	require.False(t, events[1].Time.Before(rang.Until.AsTime()), "recorded before it was decided")
	// The state of a bell contains the time of its event. In a cached state, this must be the time at which the log
	// recorded the event.
	y.do("ann", &toyv1.Ring{BellId: "9", Milliseconds: 60_000})
	if h := y.d.states.take("bell:9"); h != nil {
		require.Equal(t, y.events("bell:9")[0].Time, h.state.(*bell).rang)
	}
}

func TestDecide_ACommandThatWaitsForAFactHasNoOutcome(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.d.patience = time.Minute
	y.wait.Store(true)
	late := y.pending("ann", &toyv1.WriteNote{UserId: "ann", Text: "wait"})
	y.d.enqueue(late)
	require.Equal(t, envelope.Committed, y.do("ann", &toyv1.WriteNote{UserId: "ann", Text: "x"}).Kind, "other commands are decided")
	select {
	case outcome := <-late.outcome:
		t.Fatalf("an outcome before the fact is known: %+v", outcome)
	default:
	}
	y.wait.Store(false)
	outcome := <-late.outcome
	require.Equal(t, envelope.Committed, outcome.Kind)
	require.EqualValues(t, 2, outcome.Version)

	y.d.patience = time.Millisecond
	y.wait.Store(true)
	late = y.pending("ann", &toyv1.WriteNote{UserId: "ann", Text: "wait"})
	y.d.enqueue(late)
	require.Equal(t, refusal.Unavailable, (<-late.outcome).Code)
	require.Zero(t, y.count(`SELECT count(*) FROM toy.outcomes WHERE command_id = $1`, late.command.ID))
	y.wait.Store(false)
	late.since = time.Time{}
	y.d.enqueue(late)
	require.Equal(t, envelope.Committed, (<-late.outcome).Kind)
}

// A reaction returns commands. The commands must be committed in one transaction with the consumer's checkpoint, and
// each command once.
func TestCommitDeciding_IsOneWriteWithTheCheckpoint(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	y, other := newToy(t, url, nil), newToy(t, url, nil)
	commands := func(id string) (all []consume.Command) {
		for _, user := range []string{"ann", "bob", "ann"} {
			all = append(all, consume.Command{Actor: user, ID: fmt.Sprint(id, len(all)), Message: &toyv1.WriteNote{UserId: user, Text: id}})
		}
		return all
	}
	of := inbox.SourcePartition{Source: "chat", Topic: "chat-events"}
	_, err := y.log.Inbox().BeginConsumer(t.Context(), inbox.Consumer{Source: of.Source, Topic: of.Topic, Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	_, err = y.log.Inbox().BeginPartition(t.Context(), of, inbox.Checkpoint{Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	reading := func(position catalog.Position) eventlog.Write {
		return eventlog.Write{Expected: eventlog.AnyVersion, Advance: &inbox.Advance{Of: of,
			From: inbox.Checkpoint{Position: position - 1, Epoch: 1, Partitions: 1},
			To:   inbox.Checkpoint{Position: position, Epoch: 1, Partitions: 1}}}
	}
	_, err = y.d.commitDeciding(t.Context(), commands("a"), reading(1))
	require.NoError(t, err)
	require.Equal(t, 1, y.count(`SELECT count(DISTINCT xmin::text)::int FROM toy.events`))
	// Another instance has changed the stream, so decisions on the cached state fail with a conflict. The
	// decisions must be repeated under the log's lock.
	other.do("bob", &toyv1.WriteNote{UserId: "bob", Text: "x"})
	_, err = y.d.commitDeciding(t.Context(), append(commands("b"), commands("a")...), reading(2))
	require.NoError(t, err)
	require.Len(t, y.events("diary:ann"), 4)
	require.Len(t, y.events("diary:bob"), 3)
	// The checkpoint is no longer at the position from which the write moves it. The commands must not be committed
	// either.
	_, err = y.d.commitDeciding(t.Context(), commands("c"), reading(2))
	var stale *inbox.StaleCheckpointError
	require.ErrorAs(t, err, &stale)
	require.Len(t, y.events("diary:ann"), 4)
	y.wait.Store(true)
	_, err = y.d.commitDeciding(t.Context(), []consume.Command{commands("d")[0], {Actor: "ann", ID: "w",
		Message: &toyv1.WriteNote{UserId: "ann", Text: "wait"}}}, reading(3))
	var one *consume.CommandError
	require.ErrorAs(t, err, &one)
	require.Equal(t, 1, one.Index)
	require.Len(t, y.events("diary:ann"), 4)
}

func TestRead_RedactsExpiredEvents(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	shown := y.do("ann", &toyv1.ShowStory{Text: "secret", Milliseconds: 3_600_000})
	gone := y.do("ann", &toyv1.ShowStory{Text: "secret", Milliseconds: -1})
	require.Contains(t, string(y.events(shown.Stream)[0].Body), "secret")
	e := y.events(gone.Stream)[0]
	require.NotContains(t, string(e.Body), "secret")
	require.True(t, e.Redacted)
	require.False(t, e.Expires.IsZero())
}

func TestStates_AreBoundedInBytes(t *testing.T) {
	s, err := newStates(100, 1000)
	require.NoError(t, err)
	for i := range 10 {
		s.put(fmt.Sprint(i), &loadedState{bytes: 300})
	}
	require.Equal(t, 3, s.lru.Len())
	require.NotNil(t, s.take("9"))
	require.Nil(t, s.take("9"))
	require.EqualValues(t, 600, s.bytes)
	s.put("large", &loadedState{bytes: 2000})
	require.Zero(t, s.bytes)
}

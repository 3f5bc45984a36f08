package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fixture is a history without violations: alice starts a conversation with bob and carol, sends messages, removes
// carol and adds her again. She also writes two posts, and bob subscribes to her posts. Each test changes a fixture of
// its own.
type fixture struct {
	h        *History
	s        *Stored
	poisoned []Poison
	bob      *Session
	carol    *Session
}

var begun = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

const room = "conversation:g"

func newFixture() *fixture {
	x := &fixture{h: NewHistory()}
	chat := Log{Owner: "chat", Relayed: 7, Memberships: []Membership{{room, "alice", 1, 0}, {room, "bob", 1, 0},
		{room, "carol", 1, 4}, {room, "carol", 6, 0}}}
	opens := func(users ...string) []Change { return []Change{{Room: room, Users: users}} }
	for i, e := range []Event{
		{Type: "chat.conversation_started", Opens: opens("alice", "bob", "carol")},
		{Type: "chat.message_sent", Text: "one"},
		{Type: "chat.message_sent", Text: "two"},
		{Type: "chat.member_left", Closes: opens("carol")},
		{Type: "chat.message_sent", Text: "three"},
		{Type: "chat.member_added", Opens: opens("carol")},
		{Type: "chat.message_sent", Text: "four"},
	} {
		n := int64(i + 1)
		e.Position, e.Version, e.Stream, e.Topic, e.Actor = n, n, room, "chat-events", "alice"
		e.ID, e.Cause, e.Time = fmt.Sprint("e", n), fmt.Sprint("c", n), begun.Add(time.Duration(n)*time.Second)
		chat.Events = append(chat.Events, e)
		o := Outcome{Actor: "alice", CommandID: e.Cause, Type: "t", Stream: room, Kind: Committed, Version: n, Position: n}
		chat.Outcomes = append(chat.Outcomes, o)
		x.h.commands = append(x.h.commands, &Command{Actor: "alice", ID: e.Cause, Owner: "chat", Type: "t", Text: e.Text,
			Sends: 1, Sent: e.Time.Add(-time.Millisecond), Answers: []Answer{{Kind: Queued},
				{At: e.Time.Add(time.Millisecond), Kind: Committed, Stream: room, Version: n}}})
	}
	notification := Log{Owner: "notification", Consumed: map[int32]int64{0: 100, 1: 100}, Relayed: 3}
	for i, e := range []Event{
		{Stream: "notifications:bob", Version: 1, AboutAt: 1},
		{Stream: "notifications:carol", Version: 1, AboutAt: 1},
		{Stream: "notifications:carol", Version: 2, AboutAt: 6},
	} {
		e.Position, e.ID, e.Topic, e.About = int64(i+1), fmt.Sprint("n", i+1), "notification-events", room
		notification.Events = append(notification.Events, e)
	}
	feed := Log{Owner: "feed", Relayed: 2}
	for n := int64(1); n <= 2; n++ {
		e := Event{Type: "feed.post_created", Stream: fmt.Sprint("post:p", n), Version: 1, Position: n, Topic: "post-events",
			Actor: "alice", ID: fmt.Sprint("f", n), Cause: fmt.Sprint("p", n), Text: fmt.Sprint("post ", n),
			Time: begun.Add(time.Duration(n) * time.Second)}
		feed.Events = append(feed.Events, e)
		feed.Outcomes = append(feed.Outcomes, Outcome{Actor: "alice", CommandID: e.Cause, Type: "t", Stream: e.Stream,
			Kind: Committed, Version: 1, Position: n})
		x.h.commands = append(x.h.commands, &Command{Actor: "alice", ID: e.Cause, Owner: "feed", Type: "t", Text: e.Text,
			Sends: 1, Sent: e.Time.Add(-time.Millisecond), Answers: []Answer{
				{At: e.Time.Add(time.Millisecond), Kind: Committed, Stream: e.Stream, Version: 1}}})
	}
	x.s = &Stored{Logs: []Log{chat, notification, feed}}
	for _, l := range x.s.Logs {
		before := int64(0)
		for _, e := range l.Events {
			x.s.Records = append(x.s.Records, Record{Owner: l.Owner, Topic: e.Topic, Offset: e.Position, Position: e.Position,
				Before: before, Stream: e.Stream, Version: e.Version})
			before = e.Position
		}
	}
	x.bob, x.carol = x.session("bob", 1, 2, 3, 4, 5, 6, 7), x.session("carol", 1, 2, 3, 4, 6, 7)
	x.bob.Subscriptions, x.bob.Subscribed = []string{"alice"}, begun
	x.bob.Events = append(x.bob.Events, x.post(1), x.post(2))
	return x
}

func (x *fixture) post(n int64) Seen {
	e := x.s.log("feed").Events[n-1]
	return Seen{Type: e.Type, Stream: e.Stream, Version: 1, ID: e.ID, Actor: e.Actor, Text: e.Text}
}

// unseen removes the last post from the events that bob saw.
func (x *fixture) unseen() { x.bob.Events = x.bob.Events[:len(x.bob.Events)-1] }

// session adds a session that connected before the first event, and saw the given versions of the conversation and all
// notifications of the user.
func (x *fixture) session(user string, versions ...int64) *Session {
	s := &Session{User: user, Device: "device of " + user, Dialed: begun.Add(-time.Second), Ready: begun}
	for _, v := range versions {
		s.Events = append(s.Events, x.seen(v))
	}
	for _, e := range x.s.log("notification").Events {
		if e.Stream == "notifications:"+user {
			s.Events = append(s.Events, Seen{Type: "notification.raised", Stream: e.Stream, Version: e.Version, ID: e.ID})
			x.s.log("notification").Events[e.Position-1].Type = "notification.raised"
		}
	}
	x.h.sessions = append(x.h.sessions, s)
	return s
}

func (x *fixture) seen(version int64) Seen {
	e := x.s.Logs[0].Events[version-1]
	return Seen{Type: e.Type, Stream: e.Stream, Version: e.Version, ID: e.ID, Actor: e.Actor, Text: e.Text}
}

func (x *fixture) saw(s *Session, versions ...int64) {
	s.Events = slices.DeleteFunc(s.Events, func(e Seen) bool { return e.Stream == room })
	for _, v := range versions {
		s.Events = append(s.Events, x.seen(v))
	}
}

// outcome changes the kind of a command's outcome, both in the log and in the answer that the client got.
func (x *fixture) outcome(command int, kind string) {
	x.s.Logs[0].Outcomes[command].Kind, x.h.commands[command].Answers[1].Kind = kind, kind
}

// came makes a session begin and subscribe at a later time: the time in the variable begun plus the given duration.
func (x *fixture) came(s *Session, late time.Duration) {
	s.Dialed, s.Ready, s.Subscribed = begun.Add(late), begun.Add(late), begun.Add(late)
}

func TestCheck_FindsNothingInACorrectHistory(t *testing.T) {
	t.Parallel()
	x := newFixture()
	require.Empty(t, Check(x.h, x.s, nil))
}

func TestCheck_FindsEachBrokenPromise(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		promise string
		spoil   func(x *fixture)
	}{
		"a post that was not seen":      {clientsSee, func(x *fixture) { x.unseen() }},
		"a post that was seen twice":    {clientsSee, func(x *fixture) { x.bob.Events = append(x.bob.Events, x.post(1)) }},
		"a post that nobody wrote":      {clientsSee, func(x *fixture) { x.bob.Events[len(x.bob.Events)-1].Stream = "post:x" }},
		"a post without a subscription": {access, func(x *fixture) { x.carol.Events = append(x.carol.Events, x.post(1)) }},
		"a command without outcome": {kept, func(x *fixture) {
			x.h.commands = append(x.h.commands, &Command{Actor: "bob", ID: "lost", Owner: "chat", Sends: 3})
		}},
		"an acknowledged event that is gone": {kept, func(x *fixture) {
			l := &x.s.Logs[0]
			l.Events, l.Relayed, x.s.Records = l.Events[:6], 6, slices.Delete(x.s.Records, 6, 7)
			x.saw(x.bob, 1, 2, 3, 4, 5, 6)
			x.saw(x.carol, 1, 2, 3, 4, 6)
		}},
		"an outcome that is gone":      {kept, func(x *fixture) { x.s.Logs[0].Outcomes = x.s.Logs[0].Outcomes[1:] }},
		"another text":                 {kept, func(x *fixture) { x.h.commands[1].Text = "won" }},
		"an outcome that was not sent": {survives, func(x *fixture) { x.h.commands[1].Answers = nil }},
		"no answer":                    {survives, func(x *fixture) { x.h.commands[1].Answers[0].Kind = Nothing }},
		"two outcomes": {oneOutcome, func(x *fixture) {
			c := x.h.commands[1]
			c.Answers = append(c.Answers, Answer{Kind: Committed, Stream: room, Version: 3})
		}},
		"an event of an unknown command": {oneOutcome, func(x *fixture) {
			x.s.Logs[0].Events[4].Cause = "nobody's"
			x.s.Logs[0].Outcomes[4].Kind = Unchanged
			x.h.commands[4].Answers[1].Kind = Unchanged
		}},
		"two events of one command":     {oneOutcome, func(x *fixture) { x.s.Logs[0].Events[2].Cause = "c2" }},
		"an event of a refused command": {oneOutcome, func(x *fixture) { x.outcome(4, Refused) }},
		"a failed command":              {deadAlone, func(x *fixture) { x.outcome(1, Failed) }},
		"a version that is missing":     {dense, func(x *fixture) { x.s.Logs[0].Events[4].Version = 9 }},
		"positions out of order":        {dense, func(x *fixture) { x.s.Logs[0].Events[4].Position = 2 }},
		"an order against real time": {dense, func(x *fixture) {
			x.h.commands[1].Sent = begun.Add(time.Minute)
		}},
		"a relay that is behind":    {survives, func(x *fixture) { x.s.Logs[0].Relayed = 6 }},
		"an event not on its topic": {topicsHave, func(x *fixture) { x.s.Records = slices.Delete(x.s.Records, 2, 3) }},
		"a gap in a topic":          {topicsHave, func(x *fixture) { x.s.Records = append(x.s.Records[1:], x.s.Records[0]) }},
		"a membership without event": {access, func(x *fixture) {
			x.s.Logs[0].Memberships = append(x.s.Logs[0].Memberships, Membership{room, "eve", 2, 0})
		}},
		"a membership kept open":   {access, func(x *fixture) { x.s.Logs[0].Memberships[2].Closed = 0 }},
		"an event seen twice":      {clientsSee, func(x *fixture) { x.saw(x.bob, 1, 2, 2, 3, 4, 5, 6, 7) }},
		"events seen out of order": {clientsSee, func(x *fixture) { x.saw(x.bob, 1, 3, 2, 4, 5, 6, 7) }},
		"an event not seen":        {clientsSee, func(x *fixture) { x.saw(x.bob, 1, 2, 4, 5, 6, 7) }},
		"the first event not seen": {clientsSee, func(x *fixture) { x.saw(x.bob, 2, 3, 4, 5, 6, 7) }},
		"the last event not seen":  {clientsSee, func(x *fixture) { x.saw(x.bob, 1, 2, 3, 4, 5, 6) }},
		"nothing seen":             {clientsSee, func(x *fixture) { x.saw(x.bob) }},
		"an event from before it":  {clientsSee, func(x *fixture) { x.came(x.bob, 5*time.Second) }},
		"another event seen":       {clientsSee, func(x *fixture) { x.bob.Events[1].ID = "e3" }},
		"another text seen":        {clientsSee, func(x *fixture) { x.bob.Events[1].Text = "won" }},
		"an event to a stranger":   {access, func(x *fixture) { x.session("eve", 1) }},
		"an event while no member": {access, func(x *fixture) { x.saw(x.carol, 1, 2, 3, 4, 5, 6, 7) }},
		"a stranger's notification": {access, func(x *fixture) {
			x.bob.Events = append(x.bob.Events, slices.DeleteFunc(slices.Clone(x.carol.Events), func(e Seen) bool {
				return e.Stream == room
			})...)
		}},
		"a notification twice":    {oneOutcome, func(x *fixture) { x.s.Logs[1].Events[2].AboutAt = 1 }},
		"a notification missing":  {oneOutcome, func(x *fixture) { x.s.Logs[1].Events = x.s.Logs[1].Events[:2] }},
		"a checkpoint behind":     {survives, func(x *fixture) { x.s.Logs[1].Consumed[1] = 0 }},
		"a row that differs":      {rebuild, func(x *fixture) { x.s.Differences = []string{"a row"} }},
		"a dead letter":           {deadAlone, func(x *fixture) { x.s.Dead = []Dead{{Payload: "fine"}} }},
		"an event that is parked": {deadAlone, func(x *fixture) { x.s.Logs[1].Parked = 1 }},
		"poison without a letter": {deadAlone, func(x *fixture) { x.poisoned = []Poison{{Payload: "bad", Dead: true}} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newFixture()
			c.spoil(x)
			found := Check(x.h, x.s, x.poisoned)
			require.True(t, slices.ContainsFunc(found, func(v Violation) bool { return v.Promise == c.promise }), "%v", found)
		})
	}
}

func TestCheck_AcceptsPermittedHistories(t *testing.T) {
	t.Parallel()
	for name, allow := range map[string]func(x *fixture){
		"a session that ended early": func(x *fixture) { x.saw(x.bob, 1, 2); x.bob.Ended = begun.Add(time.Minute) },
		"a session that began late": func(x *fixture) {
			x.saw(x.bob, 6, 7)
			x.bob.Events = x.bob.Events[len(x.bob.Events)-2:]
			x.came(x.bob, 5100*time.Millisecond)
		},
		"a session that resumed, with a room not recovered": func(x *fixture) {
			x.saw(x.bob, 1, 2, 6, 7)
			at := slices.IndexFunc(x.bob.Events, func(e Seen) bool { return e.Version == 6 })
			x.bob.Events = slices.Insert(x.bob.Events, at, Seen{Type: NotRecovered, Stream: room})
		},
		"a batch that was interrupted": func(x *fixture) {
			x.s.Records = append([]Record{x.s.Records[1]}, x.s.Records...)
		},
		"a post from before the subscription": func(x *fixture) {
			x.unseen()
			x.bob.Subscribed = begun.Add(3 * time.Second)
		},
		"posts of a room that was not recovered": func(x *fixture) {
			x.unseen()
			x.bob.Events = append(x.bob.Events, Seen{Type: NotRecovered, Stream: "author:alice"})
		},
		"records published twice": func(x *fixture) { x.s.Records = append(x.s.Records, x.s.Records[:3]...) },
		"two dead letters of one poisoned message": func(x *fixture) {
			x.poisoned = []Poison{{Payload: "bad", Dead: true}, {Payload: "maybe"}}
			x.s.Dead = []Dead{{Payload: "bad"}, {Payload: "bad"}}
		},
		"a text that was redacted": func(x *fixture) {
			x.s.Logs[0].Events[1].Redacted, x.s.Logs[0].Events[1].Text = true, ""
			x.carol.Events[1].Redacted, x.carol.Events[1].Text = true, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newFixture()
			allow(x)
			require.Empty(t, Check(x.h, x.s, x.poisoned))
		})
	}
}

func TestPlan_FollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	kinds := map[string]bool{}
	for seed := range uint64(300) {
		p := NewPlan(seed, 3, 3000)
		require.Equal(t, p, NewPlan(seed, 3, 3000))
		require.Len(t, p.Faults, 3)
		for _, f := range p.Faults {
			kinds[f.Kind] = true
			require.GreaterOrEqual(t, f.After, 300)
			require.Less(t, f.After, 2100)
		}
	}
	for _, k := range kindsOfFaults() {
		require.True(t, kinds[k], "no seed of 300 has %q", k)
	}
}

func kindsOfFaults() (all []string) {
	for _, p := range Each(1000) {
		all = append(all, p.Faults[0].Kind)
	}
	return all
}

// A session resumes. An event of a room that is not recovered arrives before the reply to connect, which lists the
// room. The history must contain the record of the type NotRecovered before the event. Otherwise Check would report the
// missing events before the event as a gap.
func TestHistory_RecordsUnrecoveredRoomsBeforeTheEventsOfTheConnection(t *testing.T) {
	h, s := &History{}, &Session{}
	h.Begin(s)
	h.See(s, Seen{Stream: "conversation:7", Version: 12})
	before := h.Received(s)
	h.See(s, Seen{Stream: "conversation:7", Version: 14})
	h.Resume(s, before, []string{"conversation:7"})
	var got []string
	for _, e := range s.Events {
		got = append(got, fmt.Sprint(e.Type, e.Version))
	}
	require.Equal(t, []string{"12", "not recovered0", "14"}, got)
}

// The room of a user contains the user's notifications. If this room is not recovered, a gap is permitted in the stream
// of these notifications, and in no other stream.
func TestStreamIn_TheRoomOfAUserContainsNotifications(t *testing.T) {
	require.Equal(t, "notifications:ann", streamIn("user:ann"))
	require.Equal(t, "conversation:7", streamIn("conversation:7"))
}

// Package decidetest tests aggregates without a server. A case consists of the events of a stream, a user's command,
// and the outcome: the events to which the command leads, a refusal, or no change.
package decidetest

import (
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// Event is an event with the user who caused it.
type Event struct {
	Actor   string
	Message proto.Message
}

// By returns an event that a user caused.
func By(actor string, m proto.Message) Event { return Event{Actor: actor, Message: m} }

// Outcome is the result of a command: events, the code of a refusal, or neither if nothing has to change.
type Outcome struct {
	Events []proto.Message
	Code   string
}

// Equal reports whether two outcomes have the same code, and equal events in the same order. An event in a
// catalog.Expecting equals the same event without a catalog.Expecting, or in one with the same version.
func (o Outcome) Equal(other Outcome) bool {
	if o.Code != other.Code || len(o.Events) != len(other.Events) {
		return false
	}
	for i, e := range o.Events {
		a, expectsA := e.(catalog.Expecting)
		b, expectsB := other.Events[i].(catalog.Expecting)
		if !expectsA {
			a.Message = e
		}
		if !expectsB {
			b.Message = other.Events[i]
		}
		if !proto.Equal(a.Message, b.Message) || expectsA && expectsB && a.Version != b.Version {
			return false
		}
	}
	return true
}

// State is the part of an aggregate (owner.State) that this package uses.
type State interface {
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	Evolve(f catalog.Fact, event proto.Message)
}

// Case is a command that a user sends to a stream with given events, and the command's outcome. It is written as
//
//	decidetest.Given(started, added).When("ann", &chatv1.Leave{}).Then(left)
type Case struct {
	given   History
	by      string
	command proto.Message
	room    catalog.Room
	want    Outcome
}

// History contains the events of a stream, the first one first.
type History []Event

// Given returns the events of a stream before a command is sent.
func Given(events ...Event) History { return events }

// Sent is a case without its outcome.
type Sent struct{ c Case }

// When returns the command that a user sends after the events.
func (h History) When(user string, command proto.Message) Sent {
	return Sent{Case{given: h, by: user, command: command}}
}

// In sets the facts about the room in the member_of of the command, for a command that declares count_members_up_to.
func (s Sent) In(room catalog.Room) Sent {
	s.c.room = room
	return s
}

// Then returns the case in which the command leads to events.
func (s Sent) Then(events ...proto.Message) Case { return s.with(Outcome{Events: events}) }

// Unchanged returns the case in which nothing has to change.
func (s Sent) Unchanged() Case { return s.c }

// Refused returns the case in which the command is refused with a code.
func (s Sent) Refused(code string) Case { return s.with(Outcome{Code: code}) }

func (s Sent) with(o Outcome) Case {
	s.c.want = o
	return s.c
}

// begun is the time of the first of the given events. The later events follow at intervals of a second.
var begun = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Origin returns the origin with which a Case decides a user's command, apart from At and Version, which a Case derives
// from its given events. Ids that a test derives from this origin equal the ids that an aggregate derives in a Case.
func Origin(user string) catalog.Origin {
	return catalog.Origin{Actor: user, CommandID: "command", At: begun}
}

// Test runs each case as a subtest, on the state that the function create returns for a stream ("conversation:7").
func Test[S State](t *testing.T, stream string, create func(stream string) S, cases map[string]Case) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.Run(t, stream, create(stream))
		})
	}
}

// Run runs the case on s, the state of a stream before its first event. It fails the test if the command has another
// outcome than the case.
func (c Case) Run(t T, stream string, s State) {
	t.Helper()
	Evolve(t, s, stream, c.given...)
	by := Origin(c.by)
	by.Room = c.room
	by.Version, by.At = catalog.Version(len(c.given)), begun.Add(time.Duration(len(c.given))*time.Second)
	if got := Decide(t, s, by, c.command); !got.Equal(c.want) {
		t.Fatalf("got %v %q, want %v %q", got.Events, got.Code, c.want.Events, c.want.Code)
	}
}

// T is the part of *testing.T that this package needs. *rapid.T, for property-based tests, implements it too.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
}

var declarations = sync.OnceValues(catalog.Load)

// Evolve applies the events of a stream to a state. It omits their personal fields, as loading from the log does. An
// event that is not declared, or does not belong to the stream, fails the test.
func Evolve(t T, s State, stream string, events ...Event) {
	t.Helper()
	c, err := declarations()
	if err != nil {
		t.Fatalf("%v", err)
	}
	for i, e := range events {
		declared, ok := c.EventOf(e.Message)
		if !ok {
			t.Fatalf("%T is not declared as an event", e.Message)
		}
		if got := declared.Place(e.Message, catalog.Origin{Actor: e.Actor}).Stream; got != stream {
			t.Fatalf("event %d, %T, belongs to the stream %s, not to %s", i+1, e.Message, got, stream)
		}
		plain, _ := declared.Split(e.Message)
		s.Evolve(catalog.NewFact(e.Actor, catalog.Version(i+1), begun.Add(time.Duration(i)*time.Second), nil), plain)
	}
}

// Decide returns the outcome of a command. It fails the test if the error is not a refusal, if a refusal has no text or
// comes with events, or if the outcome differs when the command is decided a second time.
func Decide(t T, s State, by catalog.Origin, command proto.Message) Outcome {
	t.Helper()
	got := decide(t, s, by, command)
	if again := decide(t, s, by, command); !again.Equal(got) {
		t.Fatalf("%T: deciding changes the state: %v %q, then %v %q", command, got.Events, got.Code, again.Events, again.Code)
	}
	return got
}

func decide(t T, s State, by catalog.Origin, command proto.Message) Outcome {
	t.Helper()
	events, err := s.Decide(by, command)
	if err == nil {
		return Outcome{Events: events}
	}
	refused, ok := refusal.Of(err)
	switch {
	case !ok:
		t.Fatalf("%T: %v", command, err)
	case len(events) > 0:
		t.Fatalf("%T is refused (%v) and leads to events: %v", command, err, events)
	case refused.Text == "":
		t.Fatalf("%T is refused as %s, without a text", command, refused.Code)
	}
	return Outcome{Code: refused.Code}
}

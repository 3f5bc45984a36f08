// Package decidetest tests aggregates: given the events of a stream, when a user sends a command, then events follow, or
// a refusal. Its tests need no server.
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

// Outcome is what a command leads to: events, the code of a refusal, or neither if nothing has to change.
type Outcome struct {
	Events []proto.Message
	Code   string
}

// Unchanged is the outcome of a command by which nothing has to change.
var Unchanged Outcome

// Then is the outcome of a command that leads to events.
func Then(events ...proto.Message) Outcome { return Outcome{Events: events} }

// Refused is the outcome of a command that is refused with a code.
func Refused(code string) Outcome { return Outcome{Code: code} }

// Equal reports whether two outcomes have equal events in the same order, or the same code.
func (o Outcome) Equal(other Outcome) bool {
	if o.Code != other.Code || len(o.Events) != len(other.Events) {
		return false
	}
	for i, e := range o.Events {
		if !proto.Equal(message(e), message(other.Events[i])) {
			return false
		}
	}
	return true
}

// message returns the event in a catalog.Expecting, or m itself.
func message(m proto.Message) proto.Message {
	if e, ok := m.(catalog.Expecting); ok {
		return e.Message
	}
	return m
}

// State is an aggregate, as in package owner.
type State interface {
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	Evolve(f catalog.Fact, event proto.Message)
}

// Case is one command.
type Case struct {
	Given   []Event // of the stream, in this order
	By      string  // the user who sends the command
	Command proto.Message
	Want    Outcome
}

// begun is when the first of the given events was recorded. The others follow every second.
var begun = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Origin returns the origin of the commands that a user sends in cases. Ids that are derived from it are those of every
// Case.
func Origin(user string) catalog.Origin {
	return catalog.Origin{Actor: user, CommandID: "command", At: begun}
}

// Test runs each case as a subtest, on the state that create returns for a stream ("conversation:7").
func Test[S State](t *testing.T, stream string, create func(stream string) S, cases map[string]Case) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := create(stream)
			Evolve(t, s, stream, c.Given...)
			by := Origin(c.By)
			by.Version, by.At = int64(len(c.Given)), begun.Add(time.Duration(len(c.Given))*time.Second)
			got := Decide(t, s, by, c.Command)
			if !got.Equal(c.Want) {
				t.Errorf("got %v %q, want %v %q", got.Events, got.Code, c.Want.Events, c.Want.Code)
			}
		})
	}
}

// T is a test, or one try of a property.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
}

var declarations = sync.OnceValues(catalog.Load)

// Evolve applies the first events of a stream to a state: as it is loaded from the log, without personal fields. An event
// that is not one of the stream fails the test.
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
			t.Fatalf("event %d, %T, is one of the stream %s, not of %s", i+1, e.Message, got, stream)
		}
		plain, _ := declared.Split(e.Message)
		s.Evolve(catalog.NewFact(e.Actor, int64(i+1), begun.Add(time.Duration(i)*time.Second), nil), plain)
	}
}

// Decide returns the outcome of a command. An error that is not a refusal, a refusal without a text, and a state that
// decides differently when it is asked again fail the test.
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

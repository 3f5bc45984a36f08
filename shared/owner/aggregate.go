package owner

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// State is an aggregate: what deciding about one stream needs to know. It is pure, reads no clock but the one that it is
// given and no personal field, and is used by one goroutine at a time. Aggregates need not import this package.
//
// Of a stream whose events are counters (CLASS_COUNTER) only the newest event is given to Evolve: each contains the whole
// value.
type State interface {
	// Decide returns what a command leads to: events; none, if nothing has to change; or an error. It changes nothing.
	//
	// An event that is declared for another stream of the same service is appended there in the same transaction. Wrapped
	// in a catalog.Expecting it is appended only where that stream is at a version, and the command is refused otherwise.
	// At least one event has to be of the aggregate's own stream.
	//
	// A *refusal.Error is a final outcome. A *refusal.NotYetError is none: the command is decided again for up to two
	// seconds, while later ones of its stream go on, and is then answered as unavailable.
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	// Evolve applies one event.
	Evolve(f catalog.Fact, event proto.Message)
	// Forget drops what it knows about single subjects (messages); what is about the stream itself stays. The events about
	// the subjects that a command names are given to Evolve again before the command is decided.
	Forget()
}

// NewState makes the state of a stream ("conversation:7") without events.
type NewState func(stream string) State

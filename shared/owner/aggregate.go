package owner

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// State is an aggregate: the state of one stream that decisions about it need. It is pure, reads neither a clock other
// than the given time nor personal fields, and is used by one goroutine at a time. Aggregates need not import this
// package.
//
// Of a stream whose events are counters (CLASS_COUNTER), Evolve gets only the newest event, because each contains the
// whole value.
type State interface {
	// Decide returns the events to which a command leads; none, if nothing has to change; or an error. It does not
	// change the state.
	//
	// An event that is declared for another stream of the same service is appended there in the same transaction. If it
	// is wrapped in a catalog.Expecting, that stream must be at the expected version; otherwise the command is refused.
	// At least one event must belong to the aggregate's own stream.
	//
	// A *refusal.Error is a final outcome. A *refusal.NotYetError is not an outcome: the command is decided again for
	// up to two seconds, during which later commands of its stream are decided, and then refused as unavailable.
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	// Evolve applies one event.
	Evolve(f catalog.Fact, event proto.Message)
	// Forget drops the state of single subjects (such as messages) and keeps that of the stream itself. Before a later
	// command is decided, Evolve gets the events about the subjects that it names again. So the state of a long stream
	// stays small.
	Forget()
}

// NewState returns the state of a stream ("conversation:7") without events.
type NewState func(stream string) State

package owner

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// State is an aggregate: the part of a stream's state that is needed to decide the commands for the stream. It reads
// neither personal fields nor a clock; catalog.Origin and catalog.Fact contain the time. One goroutine at a time uses
// it. Aggregates need not import this package.
//
// If the events of a stream are counters (CLASS_COUNTER), Evolve gets only the newest event, because each event
// contains the whole value.
type State interface {
	// Decide returns the events to which a command leads, no events if nothing has to change, or an error. It does not
	// change the state.
	//
	// An event that is declared for another stream of the same service is appended there in the same transaction. If it
	// is wrapped in a catalog.Expecting, that stream must be at the expected version; otherwise the command is refused.
	// At least one event must belong to the aggregate's own stream.
	//
	// A *refusal.Error is a final outcome. A *refusal.NotYetError is not an outcome: the command is decided again for
	// up to two seconds, and then refused as unavailable. Later commands of its stream do not wait for it.
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	// Evolve applies one event.
	Evolve(f catalog.Fact, event proto.Message)
	// Forget drops the state of single subjects (such as messages) and keeps the state of the stream itself, so that
	// the state of a long stream stays small. Before a command that names a subject is decided, Evolve gets the events
	// about that subject again.
	Forget()
}

// NewState returns the state of a stream ("conversation:7") without events.
type NewState func(stream string) State

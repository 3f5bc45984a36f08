package owner

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// State is an aggregate: the part of a stream's state that is needed to decide the commands for the stream. It reads
// neither personal fields nor a clock; catalog.Origin and catalog.Fact contain the time. One goroutine at a time uses
// it. Aggregates need not import this package.
//
// When a stream of counters (CLASS_COUNTER) is loaded, Evolve gets the newest event without the earlier ones, because
// each event contains the whole value. For a command that names a subject, Evolve also gets the newest event about that
// subject. That event may be older than the events that Evolve got before; catalog.Fact contains the version.
type State interface {
	// Decide returns the events to which a command leads, no events if nothing has to change, or an error. It does not
	// change the state.
	//
	// An event that is declared for another stream of the same service is appended to that stream in the same
	// transaction. If such an event is wrapped in a catalog.Expecting and its stream is not at the expected version, the
	// command is refused. If there are events, at least one of them must belong to the aggregate's own stream.
	//
	// A *refusal.Error is a final outcome. A *refusal.NotYetError is not an outcome: the command is decided again for
	// up to two seconds, and then refused as unavailable. Later commands of the stream do not wait for this command.
	// With any other error, the command fails. For the commands of reactions, see consume.Effect.
	Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error)
	// Evolve applies one event.
	Evolve(f catalog.Fact, event proto.Message)
	// Forget drops the state of single subjects (such as messages) and keeps the state of the stream itself, so that
	// the state of a long stream stays small. Before a command that names a subject is decided, Evolve gets the events
	// about that subject again (of a counter, the newest one).
	Forget()
}

// Merging is implemented by states whose commands can be merged. Under load, several commands of one user for a stream
// wait at the same time, for example those that move a marker. If they are merged, they lead to one event.
type Merging interface {
	// Merge returns a command with the same effect as two commands of one type that a user has sent one after the other,
	// or nil if there is no such command. The merged command is decided instead of the earlier one. The later one is then
	// decided too; normally, nothing is left for it to change.
	Merge(earlier, later proto.Message) proto.Message
}

// NewState returns the state of a stream ("conversation:7") before its first event.
type NewState func(stream string) State

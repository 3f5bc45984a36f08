package consume

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Reaction returns the effects of an event of another owner. It is pure: it makes no calls and returns the same
// effects for the same event, in the same order. An event with many effects is applied in several transactions, which
// rely on that order.
//
// Events of one stream arrive in order. Events of different streams do not, because partitions are not ordered among
// each other: "read up to message 50" may arrive before message 50. The result of an effect may depend only on the
// state of its own stream, and that state must not depend on the order in which events of different streams arrived.
// Test this by applying the events of a few streams in many interleavings and comparing the states; for an example, see
// services/notification/rule/order_test.go.
type Reaction func(e envelope.Event, event proto.Message) []Effect

// Effect is the effect of an event on one stream of the service's own log: either events, which are appended whatever
// the stream contains, or a command, which the stream's aggregate decides.
type Effect struct {
	// Stream of the events. Empty for a command, whose declaration names its stream.
	Stream string
	// Actor of the events or of the command; empty: the actor of the event.
	Actor  string
	Events []proto.Message
	// Command of the service itself, possibly one that clients may not send. The command's outcome is stored like any
	// other. The outcome does not change when the event is delivered again, even if it is "unchanged" or "refused".
	//
	// An event whose command cannot be decided is parked. If only a fact is not known yet (refusal.NotYetError), the
	// command is tried again for two seconds before the event is parked.
	//
	// A transaction decides its commands before it appends events. So a command that follows events starts another
	// transaction, and a reaction that returns events and commands alternately costs many transactions.
	Command proto.Message
}

// Since is the time from which a service reacts to a topic that it has not consumed before. It matters only at the
// first start: the resulting position is stored, and later runs continue from the checkpoints.
type Since struct {
	kind sinceKind
	at   time.Time
}

type sinceKind int

const (
	sinceUnset sinceKind = iota
	sinceStart
	sinceNow
	sinceTime
)

// FromStart makes the service react to everything that the log contains.
func FromStart() Since { return Since{kind: sinceStart} }

// FromNow makes the service react to events after its first start.
func FromNow() Since { return Since{kind: sinceNow} }

// FromTime makes the service react to events since a time, by the clock of the owner's log.
func FromTime(t time.Time) Since { return Since{kind: sinceTime, at: t} }

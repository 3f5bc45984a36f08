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
// Events of one stream arrive in order. Events of different streams may arrive in any order, because partitions are not
// ordered among each other: "read up to message 50" may arrive before message 50. The result of an effect may depend
// only on the state of its own stream, and that state must not depend on the order in which events of different streams
// arrived. Test this by applying the events of a few streams in many interleavings and comparing the states; for an
// example, see services/notification/rule/order_test.go.
type Reaction func(e envelope.Event, event proto.Message) []Effect

// Effect is the effect of an event on one stream of the service's own log: either events, which are appended whatever
// the stream contains, or a command, which the stream's aggregate decides.
type Effect struct {
	// Stream is the stream of the Events. It is empty for a command, whose declaration names its stream.
	Stream string
	// Actor is the actor of the Events or of the Command; empty: the actor of the event that the Reaction got.
	Actor  string
	Events []proto.Message
	// Command is a command of the service itself, possibly one that clients may not send. Its outcome is stored like
	// any other. The outcome does not change when the event is delivered again, even if the outcome is "unchanged" or
	// "refused".
	//
	// An event whose command cannot be decided is parked. If the reason is a fact that is not known yet
	// (refusal.NotYetError), the command is decided again for two seconds before the event is parked.
	//
	// A transaction decides its commands before it appends events. So a command that follows events starts another
	// transaction, and a reaction that returns events and commands alternately costs many transactions.
	Command proto.Message
}

// Since is the time from which a service reacts to a topic that it has not consumed before. It matters only until the
// first record arrives: the resulting position is stored then, and later runs continue from the checkpoints.
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

// FromStart makes the service react to all events of the topic, from the first one in the owner's log.
func FromStart() Since { return Since{kind: sinceStart} }

// FromNow makes the service react to events that the owner's log does not contain yet when the first record of the
// topic arrives at the service.
func FromNow() Since { return Since{kind: sinceNow} }

// FromTime makes the service react to events at or after a time, by the clock of the owner's log.
func FromTime(t time.Time) Since { return Since{kind: sinceTime, at: t} }

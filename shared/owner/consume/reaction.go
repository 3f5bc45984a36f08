package consume

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Reaction decides what follows from an event of another owner. It is pure: it has no context to call anybody with, and
// returns the same effects for the same event, in the same order, because an event with many effects is applied in parts.
//
// Events of one stream come in order. Those of different streams do not: partitions have no order among each other, so
// "read up to message 50" may come before message 50. The result of an effect may depend only on the state of the
// stream that it is for, and that state has to be the same whichever came first. A test that applies the events of a
// few streams in many interleavings and compares the states shows it; see notification's.
type Reaction func(e envelope.Event, event proto.Message) []Effect

// Effect is what follows for one stream of the service's own log: either events, which are appended whatever the stream
// contains, or a command, which the stream's aggregate decides.
type Effect struct {
	// Stream of the events. A command has none here: its declaration names it.
	Stream string
	// Actor of the events or of the command; empty: that of the event which they follow from.
	Actor  string
	Events []proto.Message
	// Command of the service itself; clients need not be allowed to send it. Its outcome is kept as that of any other: that
	// nothing followed, because of the state that the stream was in or because it was refused, stays so when the event comes
	// again. Its decision has to be possible when the event comes: an event whose command cannot be decided is parked, after
	// two seconds if only a fact is not known yet (refusal.NotYetError).
	//
	// A transaction decides its commands before it appends events. So a command that follows events begins another one: a
	// reaction that yields both in turns costs more transactions.
	Command proto.Message
}

// Since is from when on a service reacts to a topic that it has not consumed before. It matters once: what is found then
// is stored, and a later start goes on from there.
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

// FromStart has the service react to everything that the log contains.
func FromStart() Since { return Since{kind: sinceStart} }

// FromNow has the service react to what happens after it is first started.
func FromNow() Since { return Since{kind: sinceNow} }

// FromTime has the service react to what has happened since a time, by the clock of the owner's log.
func FromTime(t time.Time) Since { return Since{kind: sinceTime, at: t} }

package eventlog

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// AnyVersion as expected version: what is written does not depend on what the stream holds.
const AnyVersion int64 = -1

// Write is what is written together or not at all: a run of commands that were decided one after the other on the same
// loaded stream, or a reaction to another owner's event.
type Write struct {
	// Stream is what Commands change, and Expected the version that it had when they were decided, or AnyVersion.
	Stream   string
	Expected int64
	// Commands in the order in which they were decided. No (Actor, CommandID) may be in it twice.
	Commands []Decided
	// DecidedAt is the time that the commands were decided at; events are not recorded as earlier. Zero: none.
	DecidedAt time.Time
	// Appends are events without a command's outcome, to any streams.
	Appends []Append
	// Advance moves the checkpoint of a partition of another owner's topic; nil: none.
	Advance *Advance
	// Resolution changes what is parked of another owner's stream; nil: nothing.
	Resolution *Resolution
}

// Decided is one command with what came of it.
type Decided struct {
	Actor     string
	CommandID string // empty: no outcome is kept
	Type      string
	// Digest of what the command asks for. The same id with another digest is refused (id_reused). Empty: any matches.
	Digest      string
	Correlation string
	TraceParent string // of the command; empty: the span in the context
	// Stream is what the command changes, and Expected its version when the command was decided, commands before it in the
	// Write included, or AnyVersion. Empty: the Write's stream, without a version of its own.
	Stream   string
	Expected int64
	// MemberOf is the room that the actor has to be a member of; empty: none. Anybody else makes the Write fail with a
	// *RefusedError.
	MemberOf string
	// Timer is the timer that sent the command; nil: none did. It is gone with the Write, and a Write that names one that
	// is not due, or was replaced or cancelled, fails with a *TimerError.
	Timer *TimerKey
	// Also are events for other streams of the log that the command leads to. They lie before its own.
	Also []Also
	// Events of the command's stream. A committed command has some, every other outcome has none.
	Events []proto.Message
	// Kind may be empty: committed with events, unchanged without.
	Kind envelope.Kind
	Code string
	Text string
}

// Also is an event that a command leads to in another stream.
type Also struct {
	Stream   string
	Expected int64 // or AnyVersion
	// Otherwise refuses the command (*RefusedError) where the stream is at another version.
	Otherwise *refusal.Error
	Event     proto.Message
}

// TimerKey names a timer. Its generation is the version of the event that set it.
type TimerKey struct {
	Stream     string
	Key        string
	Generation int64
}

// Append is events for one stream that are no command's outcome.
type Append struct {
	Stream      string
	Expected    int64 // or AnyVersion
	Actor       string
	Cause       string
	Correlation string
	TraceParent string // empty: the span in the context
	Events      []proto.Message
}

// Committed is what came of a Write.
type Committed struct {
	// Results are the outcomes of the Write's commands, in their order.
	Results []envelope.Result
	// Version is that of the Write's stream afterwards.
	Version int64
	// Position is that of the last event written, or the log's head when there was none.
	Position int64
	// At is the time that the events were recorded with.
	At time.Time
}

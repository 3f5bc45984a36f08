package eventlog

import (
	"google.golang.org/protobuf/proto"

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
	// Events of the Write's stream. A committed command has some, every other outcome has none.
	Events []proto.Message
	// Kind may be empty: committed with events, unchanged without.
	Kind envelope.Kind
	Code string
	Text string
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
}

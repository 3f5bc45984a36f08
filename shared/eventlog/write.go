package eventlog

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
)

// AnyVersion is the expected version of a write that does not depend on the stream's contents.
const AnyVersion catalog.Version = -1

// Write is a set of changes that are committed together or not at all: usually a run of commands that were decided one
// after another on the same loaded stream, or the effects of another owner's events.
type Write struct {
	// Stream is the stream that the Commands change, except those with a Stream of their own. Expected is the stream's
	// version when the Commands were decided, or AnyVersion.
	Stream   string
	Expected catalog.Version
	// Commands are in the order in which they were decided. Each pair of Actor and CommandID may occur once; an empty
	// CommandID may occur several times.
	Commands []Decided
	// DecidedAt is the time at which the commands were decided. The events of the Write are recorded with the time of
	// the log's clock at the commit, but never with a time before DecidedAt. Zero: the time is not known.
	DecidedAt time.Time
	// Appends are events that do not follow from a command, for any streams.
	Appends []Append
	// Advance moves the checkpoint of a partition of another owner's topic; nil: none.
	Advance *inbox.Advance
	// Resolution changes a parked stream of another owner; nil: none.
	Resolution *inbox.Resolution
}

// Decided is one command with its outcome.
type Decided struct {
	Actor     string
	CommandID string // empty: the command's outcome is not stored
	Type      string
	// Digest is a digest of the command's contents. A later command with the same Actor and CommandID and another
	// digest is refused (id_reused). Empty: every digest matches.
	Digest      string
	Correlation string
	TraceParent string // traceparent of the command; empty: the trace span in the context
	// Stream is the stream that the command changes. Expected is the version of that stream when the command was
	// decided, counting the events of earlier commands of the Write, or AnyVersion. If Stream is empty, the command
	// changes the Write's stream, and only the Write's Expected is checked.
	Stream   string
	Expected catalog.Version
	// MemberOf is the room of which the actor must be a member; empty: none. If the actor is not a member, the Write
	// fails with a *RefusedError.
	MemberOf string
	// Requires is the part of another stream that must exist; zero: none. If it does not exist, or is deleted, the Write
	// fails with a *RefusedError.
	Requires catalog.Part
	// Timer is the timer that sent the command; nil: none did. The Write removes the timer. If the timer is not due, or
	// was replaced or canceled, the Write fails with a *TimerError.
	Timer *TimerKey
	// Also are events that the command leads to in other streams of the log. Their positions are below those of the
	// command's own events.
	Also []Also
	// Events are appended to the command's stream. A committed command has events; a command with any other outcome has
	// none.
	Events []proto.Message
	// Kind is the kind of the outcome. Empty: Committed if there are events, and Unchanged if not.
	Kind envelope.Kind
	// Code, Text and Field are those of the refusal (refusal.Error), if the command is refused.
	Code, Text, Field string
}

// Also is an event that a command leads to in another stream.
type Also struct {
	Stream   string
	Expected catalog.Version // version of the stream, or AnyVersion
	// Otherwise is the refusal of the command (*RefusedError) if the stream is not at the expected version. Nil: the
	// Write fails with a *ConflictError.
	Otherwise *refusal.Error
	Event     proto.Message
}

// TimerKey identifies a timer. Its generation is the version of the event that set the timer.
type TimerKey struct {
	Stream     string
	Key        string
	Generation catalog.Version
}

// Append is a set of events, for one stream, that do not follow from a command.
type Append struct {
	Stream      string
	Expected    catalog.Version // version of the stream, 0 if the stream must be new, or AnyVersion
	Actor       string
	Cause       string
	Correlation string
	TraceParent string // empty: the trace span in the context
	Events      []proto.Message
}

// Committed is the result of a Write.
type Committed struct {
	// Outcomes are the outcomes of the Write's commands, in the order of the commands.
	Outcomes []envelope.Outcome
	// Version is the version of the Write's stream directly after the Write. If later writes of the same transaction
	// append to the stream, its committed version is higher.
	Version catalog.Version
	// Position is that of the Write's last event, or the log's head at that point of the transaction if the Write has
	// no events.
	Position catalog.Position
	// At is the time with which the events were recorded.
	At time.Time
}

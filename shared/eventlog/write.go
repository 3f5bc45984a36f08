package eventlog

import (
	"context"
	"fmt"

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
	// Reading is what of another owner's log this is the answer to; nil: nothing.
	Reading *Reading
}

// Decided is one command with what came of it.
type Decided struct {
	Actor       string
	CommandID   string // empty: no outcome is kept
	Type        string
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

// Reading is how far a stream of another owner's log (or its position, under a stream name of the reader's choice) was
// read. Version is saved with the Write, if what is saved so far is Previous (0: nothing).
type Reading struct {
	Source   string
	Stream   string
	Version  int64
	Previous int64
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

// Commit writes in the next transaction, with whatever else waits for it. Its errors:
//   - *ConflictError: the stream has moved on; load and decide again.
//   - *RepeatedError: some of the commands have outcomes already; leave them out and decide the rest again.
//   - *StaleReadingError: the foreign event was read already, or one before it is missing.
//   - *MemberError: the write fails by itself and always will.
//   - an error that wraps bus.ErrAway: the database is away, or ctx ended first. Whether it was written may be unknown;
//     the same Write again is answered by its ids (RepeatedError, StaleReadingError) if it was.
//
// Nothing of the write was written with any of these but the last.
func (l *Log) Commit(ctx context.Context, w Write) (Committed, error) { panic("being written") }

// CommitDeciding loads a stream and decides inside the next transaction, under the log's lock, where no version race can
// be lost. The Write's Stream and Expected are set from what was loaded. Decide must be quick, and may be called again.
// An error of its own is returned as it is.
func (l *Log) CommitDeciding(ctx context.Context, s Selection,
	decide func(context.Context, Loaded) (Write, error)) (Committed, error) {
	panic("being written")
}

// Outcome finds the outcome of a command.
func (l *Log) Outcome(ctx context.Context, actor, commandID string) (envelope.Result, bool, error) {
	panic("being written")
}

// ReadingOf says how far a foreign stream was read; 0: not at all.
func (l *Log) ReadingOf(ctx context.Context, source, stream string) (int64, error) { panic("being written") }

// ConflictError says that a stream is not at the version that was expected.
type ConflictError struct {
	Stream   string
	Expected int64
	Actual   int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("append %s at version %d: it is at %d", e.Stream, e.Expected, e.Actual)
}

// RepeatedError says which commands of a Write, by their index, have outcomes already. Where the same id stands for
// another type or stream the outcome given is a refusal with the code id_reused.
type RepeatedError struct {
	Outcomes map[int]envelope.Result
}

func (e *RepeatedError) Error() string { return fmt.Sprintf("%d commands have an outcome already", len(e.Outcomes)) }

// StaleReadingError says that another version of the foreign stream was read last.
type StaleReadingError struct {
	Source string
	Stream string
	Have   int64
}

func (e *StaleReadingError) Error() string {
	return fmt.Sprintf("%s of %s is read up to version %d", e.Stream, e.Source, e.Have)
}

// MemberError is why a Write fails whenever it is tried.
type MemberError struct{ Err error }

func (e *MemberError) Error() string { return "this write fails by itself: " + e.Err.Error() }

func (e *MemberError) Unwrap() error { return e.Err }

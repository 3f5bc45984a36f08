package owner

// Only tests call this file so far: reactions still return events alone (see package consume).
//lint:file-ignore U1000 the tests that use it have the build tag integration

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// Command is a command of this service that one of its own reactions yields. It goes to the stream of its declaration.
type Command struct {
	Actor string
	// ID is made from the event that it follows from, so that a repeat is the same command.
	ID          string
	Correlation string
	TraceParent string
	Message     proto.Message // declared; clients need not be allowed to send it
}

// CommandError says which command could not be decided, and why. Nothing was written.
type CommandError struct {
	Index int // among those given
	Err   error
}

func (e *CommandError) Error() string { return fmt.Sprintf("decide command %d: %v", e.Index, e.Err) }

func (e *CommandError) Unwrap() error { return e.Err }

// commitDeciding decides commands, each on the state of its stream, and commits their outcomes together with w, which has
// no commands of its own. A command that has an outcome already counts as done; a refusal is an outcome. Other errors are
// those of Log.Commit for w, or a *CommandError.
//
// It decides on the states that are known, and once it has lost a race, under the log's lock.
func (d *decider) commitDeciding(ctx context.Context, commands []Command, w eventlog.Write) (eventlog.Committed, error) {
	batch, err := d.batchOf(ctx, commands)
	if err != nil {
		return eventlog.Committed{}, err
	}
	commit := batch.attempt
	for {
		if batch.empty() {
			return d.log.Commit(ctx, w)
		}
		committed, err := commit(ctx, w)
		var conflict *eventlog.ConflictError
		var repeated *eventlog.RepeatedError
		var refused *eventlog.RefusedError
		switch {
		case errors.As(err, &conflict) && batch.has(conflict.Stream):
			commit = batch.insideCommit
		case errors.As(err, &repeated):
			batch.drop(repeated.Outcomes)
		case errors.As(err, &refused):
			for i, r := range refused.Refusals {
				batch.decided[i].refused = r
			}
		default:
			return committed, err
		}
	}
}

// batch is commands on several streams that are decided and committed together.
type batch struct {
	decider *decider
	streams []string            // in the order of their first command
	runs    map[string][]*asked // by stream, without those that are done
	index   map[*asked]int      // among those given
	decided []*asked            // in the order in which the last Write has them
}

func (d *decider) batchOf(ctx context.Context, commands []Command) (*batch, error) {
	b := &batch{decider: d, runs: map[string][]*asked{}, index: map[*asked]int{}}
	seen := map[catalog.Origin]bool{}
	for i, c := range commands {
		declared, ok := d.catalog.CommandOf(c.Message)
		if !ok {
			return nil, &CommandError{i, fmt.Errorf("%s is not a command", c.Message.ProtoReflect().Descriptor().FullName())}
		}
		by := catalog.Origin{Actor: c.Actor, CommandID: c.ID}
		if seen[by] {
			continue // a repeat
		}
		seen[by] = true
		stream := declared.Stream(c.Message, by)
		command := envelope.Command{ID: c.ID, Type: declared.Name, Stream: stream, Actor: c.Actor, Correlation: c.Correlation,
			TraceParent: c.TraceParent}
		a := &asked{declared: declared, message: c.Message, digest: digestOfMessage(command, c.Message),
			trace: telemetry.Continue(ctx, c.TraceParent), command: command}
		if b.runs[stream] == nil {
			b.streams = append(b.streams, stream)
		}
		b.runs[stream], b.index[a] = append(b.runs[stream], a), i
	}
	return b, nil
}

func (b *batch) empty() bool { return len(b.streams) == 0 }

func (b *batch) has(stream string) bool { return b.runs[stream] != nil }

// drop leaves out the commands that have an outcome, by their index in the last Write.
func (b *batch) drop(outcomes map[int]envelope.Result) {
	streams, rest := b.streams, map[string][]*asked{}
	for i, a := range b.decided {
		if _, done := outcomes[i]; !done {
			rest[a.command.Stream] = append(rest[a.command.Stream], a)
		}
	}
	b.runs, b.streams = rest, nil
	for _, stream := range streams {
		if rest[stream] != nil {
			b.streams = append(b.streams, stream)
		}
	}
}

// attempt decides on what is known of the streams.
func (b *batch) attempt(ctx context.Context, w eventlog.Write) (committed eventlog.Committed, err error) {
	states := make([]*held, len(b.streams))
	for i, stream := range b.streams {
		if states[i], err = b.load(stream); err != nil {
			return committed, err
		}
	}
	at := b.clock(states)
	if w, err = b.decide(states, at, w); err != nil {
		return committed, err
	}
	if committed, err = b.decider.log.Commit(ctx, w); err != nil {
		return committed, err
	}
	for i, stream := range b.streams {
		b.decider.keep(stream, states[i], at, committed.At)
	}
	b.forget(w)
	return committed, nil
}

// forget drops the states of streams that a Write has changed without deciding about them.
func (b *batch) forget(w eventlog.Write) {
	for _, a := range w.Appends {
		b.decider.states.take(a.Stream)
	}
	for _, c := range w.Commands {
		for _, also := range c.Also {
			b.decider.states.take(also.Stream)
		}
	}
}

func (b *batch) load(stream string) (h *held, err error) {
	defer func() {
		if p := recover(); p != nil {
			b.decider.logger.Error("loading panicked", "stream", stream, "panic", p, "stack", string(debug.Stack()))
			err = b.error(b.runs[stream][0], fmt.Errorf("load %s: panic: %v", stream, p))
		}
	}()
	return b.decider.load(stream, b.runs[stream])
}

func (b *batch) error(a *asked, err error) error { return &CommandError{b.index[a], err} }

// clock is the time that all commands are decided at.
func (b *batch) clock(states []*held) time.Time {
	at := b.decider.log.Clock()
	for _, h := range states {
		if h.at.After(at) {
			at = h.at
		}
	}
	return at
}

// insideCommit decides under the log's lock.
func (b *batch) insideCommit(ctx context.Context, w eventlog.Write) (eventlog.Committed, error) {
	selections := make([]eventlog.Selection, len(b.streams))
	for i, stream := range b.streams {
		b.decider.states.take(stream)
		selections[i] = b.decider.selection(stream, b.runs[stream])
	}
	var written eventlog.Write
	committed, err := b.decider.log.CommitDecidingAll(ctx, selections,
		func(_ context.Context, loaded []eventlog.Loaded) (_ eventlog.Write, err error) {
			states := make([]*held, len(b.streams))
			for i, stream := range b.streams {
				state, err := b.decider.fresh(stream)
				if err != nil {
					return w, err
				}
				states[i] = &held{state: state}
				if err := b.decider.fold(states[i], loaded[i]); err != nil {
					return w, b.error(b.runs[stream][0], err)
				}
			}
			written, err = b.decide(states, loaded[0].At, w)
			return written, err
		})
	if err == nil {
		b.forget(written)
	}
	return committed, err
}

func (b *batch) decide(states []*held, at time.Time, w eventlog.Write) (eventlog.Write, error) {
	w.DecidedAt, w.Commands, b.decided = at, nil, nil
	w.Expected = eventlog.AnyVersion
	for i, stream := range b.streams {
		for _, a := range b.runs[stream] {
			one, err := b.decider.decideOne(states[i], at, a)
			if err != nil {
				return w, b.error(a, err)
			}
			w.Commands, b.decided = append(w.Commands, one), append(b.decided, a)
		}
	}
	return w, nil
}

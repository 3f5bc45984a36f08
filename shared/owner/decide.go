package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	maxBatch   = 256 // maximum number of commands that are decided on one loaded state
	firstPause = 50 * time.Millisecond
)

// decider decides commands. Up to maxBatch commands that wait for one stream are decided as a batch, on one loaded
// state, and committed together. If that fails, they are decided one by one.
type decider struct {
	log        *eventlog.Log
	catalog    *catalog.Catalog
	aggregates map[string]NewState
	tracer     trace.Tracer
	logger     *slog.Logger
	waiting    func(dependency string, err error)
	now        func() time.Time
	patience   time.Duration // how long a command is retried after a refusal.NotYetError; 0: notYetPatience

	ctx       context.Context // ends when nothing may be committed any more
	states    *states
	mailboxes *mailboxes[*pendingCommand]
}

// pendingCommand is a command that waits for its outcome.
type pendingCommand struct {
	command  envelope.Command
	declared *catalog.Command
	message  proto.Message
	digest   string              // of type, stream and body
	timer    *eventlog.TimerKey  // of the timer that sent the command; nil: no timer sent it
	trace    context.Context     // of the trace span that handles the command
	outcome  chan commandOutcome // has room for one outcome

	room    catalog.Room   // facts about the room of member_of, if the command declares to need them
	refused *refusal.Error // the refusal by the checks under the log's lock; nil: none
	since   time.Time      // when a decision first returned a NotYetError; zero: none has
	notYet  *refusal.NotYetError
}

type commandOutcome struct {
	envelope.Outcome
	repeated  bool // the outcome is that of an earlier command with the same id
	published bool // the headers of the command's last event contain the outcome
	err       error
}

func (pc *pendingCommand) origin() catalog.Origin {
	return catalog.Origin{Actor: pc.command.Actor, CommandID: pc.command.ID}
}

func newDecider(ctx context.Context, d decider) (*decider, error) {
	var err error
	if d.states, err = newStates(maxStates, maxStateBytes); err != nil {
		return nil, err
	}
	if d.patience == 0 {
		d.patience = notYetPatience
	}
	d.ctx = ctx
	d.mailboxes = newMailboxes(maxBatch, d.decideAll)
	return &d, nil
}

// enqueue queues a command for its stream. The outcome is sent on pc.outcome.
func (d *decider) enqueue(pc *pendingCommand) { d.mailboxes.put(pc.command.Stream, pc) }

// decideAll decides the commands that waited for one stream.
func (d *decider) decideAll(stream string, batch []*pendingCommand) {
	for len(batch) > 0 {
		n := distinct(batch)
		d.decideDistinct(stream, batch[:n:n])
		batch = batch[n:]
	}
}

// distinct returns the number of commands before the first repeat. A repeat is decided only after the earlier command
// with the same actor and id has its outcome or was put off.
func distinct(batch []*pendingCommand) int {
	seen := make(map[catalog.Origin]bool, len(batch))
	for i, pc := range batch {
		if seen[pc.origin()] {
			return i
		}
		seen[pc.origin()] = true
	}
	return len(batch)
}

// decideDistinct decides the commands in one commit. If deciding or committing fails, decideDistinct decides them one
// by one, so that a bad command fails alone.
func (d *decider) decideDistinct(stream string, batch []*pendingCommand) {
	rest, err := d.together(stream, batch)
	if err == nil {
		return
	}
	if len(rest) == 1 {
		d.failAll(rest, err)
		return
	}
	for _, pc := range rest {
		if left, err := d.together(stream, []*pendingCommand{pc}); err != nil {
			d.failAll(left, err)
		}
	}
}

func (d *decider) failAll(batch []*pendingCommand, err error) {
	for _, pc := range batch {
		pc.outcome <- commandOutcome{err: err}
	}
}

// together decides a batch and commits it. While the database is unavailable, it waits and tries again. After two
// conflicts with other commits, it decides under the log's lock. If it fails, it returns the error and the commands
// that still need an outcome.
func (d *decider) together(stream string, batch []*pendingCommand) ([]*pendingCommand, error) {
	delay, conflicts, unavailable := retry.Backoff{First: firstPause}, 0, false
	defer func() {
		if unavailable && d.ctx.Err() == nil {
			d.waiting("postgres", nil)
		}
	}()
	for len(batch) > 0 {
		var err error
		if conflicts < 2 {
			batch, err = d.attempt(stream, batch)
		} else {
			batch, err = d.insideCommit(stream, batch)
		}
		var conflict *eventlog.ConflictError
		switch {
		case err == nil:
		case errors.As(err, &conflict):
			conflicts++
		case errors.Is(err, retry.ErrUnavailable):
			unavailable = true
			d.waiting("postgres", err)
			if !delay.Wait(d.ctx) {
				return batch, fmt.Errorf("decide %s: %w", stream, err)
			}
		default:
			return batch, err
		}
	}
	return nil, nil
}

// attempt decides on the state of the stream, which is cached or read from the log, and commits if the stream still has
// the version of that state. It returns the commands that must be decided again.
func (d *decider) attempt(stream string, batch []*pendingCommand) (rest []*pendingCommand, err error) {
	defer func() {
		if p := recover(); p != nil { // an aggregate that panics on a stored event must not end the process
			d.logger.Error("loading panicked", "stream", stream, "panic", p, "stack", string(debug.Stack()))
			rest, err = batch, fmt.Errorf("load %s: panic: %v", stream, p)
		}
	}()
	if err := d.readRooms(d.ctx, batch); err != nil {
		return batch, err
	}
	h, err := d.load(stream, batch)
	if err != nil {
		return batch, err
	}
	r, err := d.decide(h, d.clock(h), batch)
	if err != nil {
		return batch, err
	}
	if len(r.decided) == 0 {
		d.keep(stream, h, r.write.DecidedAt, r.write.DecidedAt)
		return d.end(r, eventlog.Committed{}, nil)
	}
	committed, err := d.log.Commit(d.ctx, r.write)
	if err == nil {
		d.keep(stream, h, r.write.DecidedAt, committed.At)
	}
	return d.end(r, committed, err)
}

// clock returns the time at which commands are decided on a state. It is not before the times of the state's events.
func (d *decider) clock(h *loadedState) time.Time {
	if now := d.log.Clock(); now.After(h.at) {
		return now
	}
	return h.at
}

// insideCommit decides and commits under the log's lock, so nothing else can be appended to the stream in between. It
// returns the commands that must be decided again.
func (d *decider) insideCommit(stream string, batch []*pendingCommand) ([]*pendingCommand, error) {
	d.states.take(stream)
	if err := d.readRooms(d.ctx, batch); err != nil {
		return batch, err
	}
	r := decidedBatch{decided: batch}
	committed, err := d.log.CommitDecidingAll(d.ctx, []eventlog.Selection{d.selection(stream, batch)},
		func(_ context.Context, all []eventlog.Loaded) (eventlog.Write, error) {
			state, err := d.fresh(stream)
			if err != nil {
				return eventlog.Write{}, err
			}
			h := &loadedState{state: state}
			if err := d.fold(h, all[0]); err != nil {
				return eventlog.Write{}, err
			}
			r, err = d.decide(h, all[0].At, batch)
			return r.write, err
		})
	return d.end(r, committed, err)
}

// end ends an attempt. The parameter err is the error with which deciding or committing the batch failed, or nil. If
// the method settled cannot handle this error, end returns the error together with all commands. In every other case,
// end delivers outcomes, puts off the commands that cannot be decided yet, and returns the commands that must be
// decided again.
func (d *decider) end(r decidedBatch, committed eventlog.Committed, err error) (rest []*pendingCommand, _ error) {
	if err == nil {
		d.committed(r, committed.Outcomes)
	} else if rest, err = d.settled(r.decided, err); err != nil {
		return append(rest, r.putOff...), err
	}
	for _, pc := range r.putOff {
		d.putOff(pc)
	}
	return rest, nil
}

// settled handles an error that some commands of a commit have caused. A command that already has an outcome gets that
// outcome, and a command whose timer is gone or not due gets errTimer. settled returns the commands that must be
// decided again. Among them are those that the log refuses, because the next decision stores the refusal as their
// outcome. Any other error is returned together with all commands.
func (d *decider) settled(decided []*pendingCommand, err error) ([]*pendingCommand, error) {
	var repeated *eventlog.RepeatedError
	var refused *eventlog.RefusedError
	var timer *eventlog.TimerError
	var rest []*pendingCommand
	switch {
	case errors.As(err, &repeated):
		for i, pc := range decided {
			if first, ok := repeated.Outcomes[i]; ok {
				pc.outcome <- commandOutcome{Outcome: first, repeated: true}
			} else {
				rest = append(rest, pc)
			}
		}
	case errors.As(err, &refused):
		for i, r := range refused.Refusals {
			decided[i].refused = r
		}
		rest = decided
	case errors.As(err, &timer):
		for i, pc := range decided {
			if timer.Commands[i] {
				pc.outcome <- commandOutcome{err: errTimer}
			} else {
				rest = append(rest, pc)
			}
		}
	default:
		return decided, err
	}
	return rest, nil
}

// errTimer is the error of a timer's command if the timer is gone or not due.
var errTimer = errors.New("the timer is gone or not due")

// committed delivers the outcomes of a committed batch, and drops the cached states of the other streams that the batch
// has changed.
func (d *decider) committed(r decidedBatch, outcomes []envelope.Outcome) {
	for i, pc := range r.decided {
		for _, also := range r.write.Commands[i].Also {
			d.states.take(also.Stream) // the cached state lacks the event
		}
		pc.outcome <- commandOutcome{Outcome: outcomes[i], published: outcomes[i].Kind == envelope.Committed}
	}
}

// recordFailure stores the final outcome "failed" of a command that could not be decided. If the command has an outcome
// already, recordFailure returns that outcome.
func (d *decider) recordFailure(ctx context.Context, c envelope.Command, timer *eventlog.TimerKey) (envelope.Outcome, error) {
	committed, err := d.log.Commit(ctx, eventlog.Write{Stream: c.Stream, Expected: eventlog.AnyVersion,
		Commands: []eventlog.Decided{{Actor: c.Actor, CommandID: c.ID, Type: c.Type, Correlation: c.Correlation,
			TraceParent: c.TraceParent, Digest: d.digestOf(c), Timer: timer, Kind: envelope.Failed, Code: refusal.Failed,
			Text: command.Failure}}})
	var repeated *eventlog.RepeatedError
	if errors.As(err, &repeated) {
		return repeated.Outcomes[0], nil
	} else if err != nil {
		return envelope.Outcome{}, err
	}
	return committed.Outcomes[0], nil
}

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
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/sleep"
)

const (
	maxRun     = 256 // commands decided on one loaded state
	firstPause = 50 * time.Millisecond
	maxWait    = 5 * time.Second
)

// decider decides commands: those that wait for one stream in one run, on one loaded state, in one commit.
type decider struct {
	log        *eventlog.Log
	catalog    *catalog.Catalog
	aggregates map[string]NewState
	tracer     trace.Tracer
	logger     *slog.Logger
	waiting    func(dependency string, err error)
	now        func() time.Time
	patience   time.Duration // with commands that cannot be decided yet; 0: notYetPatience

	ctx    context.Context // ends when nothing may be committed any more
	states *states
	boxes  *mailboxes[*asked]
}

// asked is a command that waits for its outcome.
type asked struct {
	command  envelope.Command
	declared *catalog.Command
	message  proto.Message
	digest   string             // of type, stream and body
	timer    *eventlog.TimerKey // that sent it; nil: none did
	trace    context.Context    // of the span that handles it
	answer   chan answer        // takes one

	refused *refusal.Error // by what was read under the log's lock
	since   time.Time      // when it could not be decided yet for the first time
	notYet  *refusal.NotYetError
}

type answer struct {
	result   envelope.Result
	repeated bool // it is the outcome of an earlier one with the same id
	told     bool // the relay tells it, by the headers of the commit's last event
	err      error
}

func (a *asked) origin() catalog.Origin {
	return catalog.Origin{Actor: a.command.Actor, CommandID: a.command.ID}
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
	d.boxes = newMailboxes(maxRun, d.run)
	return &d, nil
}

// ask queues a command in its order. Its answer comes on a.answer.
func (d *decider) ask(a *asked) { d.boxes.put(a.command.Stream, a) }

// run decides the commands that waited for one stream.
func (d *decider) run(stream string, run []*asked) {
	for len(run) > 0 {
		n := distinct(run)
		d.runDistinct(stream, run[:n:n])
		run = run[n:]
	}
}

// distinct counts the commands up to one that was sent twice: the second is decided when the first has its outcome.
func distinct(run []*asked) int {
	seen := make(map[catalog.Origin]bool, len(run))
	for i, a := range run {
		if seen[a.origin()] {
			return i
		}
		seen[a.origin()] = true
	}
	return len(run)
}

// runDistinct decides commands together, and those that cannot be, alone: so one of them costs only itself.
func (d *decider) runDistinct(stream string, run []*asked) {
	rest, err := d.together(stream, run)
	if err == nil {
		return
	}
	if len(rest) == 1 {
		d.fail(rest, err)
		return
	}
	for _, a := range rest {
		if left, err := d.together(stream, []*asked{a}); err != nil {
			d.fail(left, err)
		}
	}
}

func (d *decider) fail(run []*asked, err error) {
	for _, a := range run {
		a.answer <- answer{err: err}
	}
}

// together decides a run and commits it, waiting for as long as the database is unavailable. The commands that it returns
// have no answer.
func (d *decider) together(stream string, run []*asked) ([]*asked, error) {
	wait, conflicts, away := firstPause, 0, false
	defer func() {
		if away && d.ctx.Err() == nil {
			d.waiting("postgres", nil)
		}
	}()
	for len(run) > 0 {
		var err error
		if conflicts < 2 {
			run, err = d.attempt(stream, run)
		} else {
			run, err = d.insideCommit(stream, run)
		}
		var conflict *eventlog.ConflictError
		switch {
		case err == nil:
		case errors.As(err, &conflict):
			conflicts++
		case errors.Is(err, bus.ErrAway):
			away = true
			d.waiting("postgres", err)
			if sleep.For(d.ctx, wait); d.ctx.Err() != nil {
				return run, fmt.Errorf("decide %s: %w", stream, err)
			}
			wait = min(2*wait, maxWait)
		default:
			return run, err
		}
	}
	return nil, nil
}

// attempt decides on what is known of the stream and commits under the version that this was. It returns the commands
// that have no answer yet: those are decided again.
func (d *decider) attempt(stream string, run []*asked) (rest []*asked, err error) {
	defer func() {
		if p := recover(); p != nil { // folding stored events must not take the process with it
			d.logger.Error("loading panicked", "stream", stream, "panic", p, "stack", string(debug.Stack()))
			rest, err = run, fmt.Errorf("load %s: panic: %v", stream, p)
		}
	}()
	h, err := d.load(stream, run)
	if err != nil {
		return run, err
	}
	r, err := d.decide(h, d.clock(h), run)
	if err != nil {
		return run, err
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

// clock is the time that commands on a state are decided at.
func (d *decider) clock(h *held) time.Time {
	if now := d.log.Clock(); now.After(h.at) {
		return now
	}
	return h.at
}

// insideCommit decides under the log's lock, where nobody else can append to the stream.
func (d *decider) insideCommit(stream string, run []*asked) ([]*asked, error) {
	d.states.take(stream)
	r := decidedRun{decided: run}
	committed, err := d.log.CommitDecidingAll(d.ctx, []eventlog.Selection{d.selection(stream, run)},
		func(_ context.Context, all []eventlog.Loaded) (eventlog.Write, error) {
			state, err := d.fresh(stream)
			if err != nil {
				return eventlog.Write{}, err
			}
			h := &held{state: state}
			if err := d.fold(h, all[0]); err != nil {
				return eventlog.Write{}, err
			}
			r, err = d.decide(h, all[0].At, run)
			return r.write, err
		})
	return d.end(r, committed, err)
}

// end answers the commands that need not be decided again, and returns the others. err is why the Write that has them all
// was not committed.
func (d *decider) end(r decidedRun, committed eventlog.Committed, err error) (rest []*asked, _ error) {
	if err == nil {
		d.committed(r, committed.Results)
	} else if rest, err = d.settled(r.decided, err); err != nil {
		return append(rest, r.putOff...), err
	}
	for _, a := range r.putOff {
		d.putOff(a)
	}
	return rest, nil
}

// settled answers the commands because of which a Write was not committed, where they need not be decided again, and
// returns the others. An error that is not about single commands is returned.
func (d *decider) settled(decided []*asked, err error) ([]*asked, error) {
	var repeated *eventlog.RepeatedError
	var refused *eventlog.RefusedError
	var timer *eventlog.TimerError
	var rest []*asked
	switch {
	case errors.As(err, &repeated):
		for i, a := range decided {
			if first, ok := repeated.Outcomes[i]; ok {
				a.answer <- answer{result: first, repeated: true}
			} else {
				rest = append(rest, a)
			}
		}
	case errors.As(err, &refused):
		for i, r := range refused.Refusals {
			decided[i].refused = r
		}
		rest = decided
	case errors.As(err, &timer):
		for i, a := range decided {
			if timer.Commands[i] {
				a.answer <- answer{err: errTimer}
			} else {
				rest = append(rest, a)
			}
		}
	default:
		return decided, err
	}
	return rest, nil
}

// errTimer answers the command of a timer that is not there any more, or not due.
var errTimer = errors.New("the timer is gone or not due")

// committed answers the commands of a Write.
func (d *decider) committed(r decidedRun, results []envelope.Result) {
	for i, a := range r.decided {
		for _, also := range r.write.Commands[i].Also {
			d.states.take(also.Stream) // it is behind now
		}
		a.answer <- answer{result: results[i], told: results[i].Kind == envelope.Committed}
	}
}

// failed records that a command could not be decided, as its final outcome.
func (d *decider) failed(ctx context.Context, c envelope.Command, timer *eventlog.TimerKey) (envelope.Result, error) {
	committed, err := d.log.Commit(ctx, eventlog.Write{Stream: c.Stream, Expected: eventlog.AnyVersion,
		Commands: []eventlog.Decided{{Actor: c.Actor, CommandID: c.ID, Type: c.Type, Correlation: c.Correlation,
			TraceParent: c.TraceParent, Digest: d.digestOf(c), Timer: timer, Kind: envelope.Failed, Code: refusal.Failed,
			Text: "the command could not be decided; the operator finds it among the dead letters"}}})
	var repeated *eventlog.RepeatedError
	if errors.As(err, &repeated) {
		return repeated.Outcomes[0], nil
	} else if err != nil {
		return envelope.Result{}, err
	}
	return committed.Results[0], nil
}

package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

const (
	longestRun  = 256   // commands decided on one loaded state
	statesKept  = 5_000 // streams whose state is kept between runs
	firstPause  = 50 * time.Millisecond
	longestWait = 5 * time.Second
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

	ctx    context.Context // ends when nothing may be committed any more
	states *lru.Cache[string, *held]
	boxes  *mailboxes[*asked]
}

// held is a state as of a version of its stream.
type held struct {
	state   State
	version int64
}

// asked is a command that waits for its outcome.
type asked struct {
	command  envelope.Command
	declared *catalog.Command
	message  proto.Message
	digest   string
	trace    context.Context // of the span that handles it
	answer   chan answer     // takes one
}

type answer struct {
	result envelope.Result
	told   bool // the relay tells it, by the headers of the commit's last event
	err    error
}

func (a *asked) origin() catalog.Origin {
	return catalog.Origin{Actor: a.command.Actor, CommandID: a.command.ID}
}

func newDecider(ctx context.Context, d decider) (*decider, error) {
	states, err := lru.New[string, *held](statesKept)
	if err != nil {
		return nil, err
	}
	d.ctx, d.states = ctx, states
	d.boxes = newMailboxes(longestRun, d.run)
	return &d, nil
}

// ask queues a command in its order. Its answer comes on a.answer.
func (d *decider) ask(a *asked) { d.boxes.put(a.command.Stream, a) }

// run takes what waited for one stream.
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

// runDistinct decides together, and those who cannot be, alone: so one of them costs only itself.
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

// together decides a run and commits it, waiting for as long as the database is away. What it returns was not answered.
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
			if pause(d.ctx, wait); d.ctx.Err() != nil {
				return run, fmt.Errorf("decide %s: %w", stream, err)
			}
			wait = min(2*wait, longestWait)
		default:
			return run, err
		}
	}
	return nil, nil
}

// attempt decides on what is known of the stream and commits under the version that this was. It returns what has no
// answer yet: those who are to be decided again.
func (d *decider) attempt(stream string, run []*asked) (rest []*asked, err error) {
	defer func() {
		if p := recover(); p != nil { // folding what is stored, which must not take the process with it
			d.logger.Error("loading panicked", "stream", stream, "panic", p, "stack", string(debug.Stack()))
			rest, err = run, fmt.Errorf("load %s: panic: %v", stream, p)
		}
	}()
	h, err := d.load(stream, run)
	if err != nil {
		return run, err
	}
	write, err := d.decide(h.state, run)
	if err != nil {
		return run, err
	}
	write.Stream, write.Expected = stream, h.version
	committed, err := d.log.Commit(d.ctx, write)
	if err != nil {
		return d.repeated(run, err)
	}
	h.version = committed.Version
	h.state.Forget()
	d.states.Add(stream, h)
	tell(run, committed.Results)
	return nil, nil
}

// insideCommit decides while the log is ours, where nobody can be faster.
func (d *decider) insideCommit(stream string, run []*asked) ([]*asked, error) {
	d.states.Remove(stream)
	committed, err := d.log.CommitDeciding(d.ctx, eventlog.Selection{Stream: stream, Subjects: subjects(run)},
		func(_ context.Context, l eventlog.Loaded) (eventlog.Write, error) {
			state, err := d.fresh(stream)
			if err != nil {
				return eventlog.Write{}, err
			}
			if err := d.fold(state, l.Events); err != nil {
				return eventlog.Write{}, err
			}
			return d.decide(state, run)
		})
	if err != nil {
		return d.repeated(run, err)
	}
	tell(run, committed.Results)
	return nil, nil
}

// decide asks the aggregate about each command in turn; each sees what those before it lead to.
func (d *decider) decide(state State, run []*asked) (eventlog.Write, error) {
	var w eventlog.Write
	for _, a := range run {
		one, err := d.decideOne(state, a)
		if err != nil {
			return eventlog.Write{}, fmt.Errorf("decide %s for %s: %w", a.command.Type, a.command.Stream, err)
		}
		w.Commands = append(w.Commands, one)
	}
	return w, nil
}

// decideOne recovers what an aggregate does wrong: it costs the command, not the service.
func (d *decider) decideOne(state State, a *asked) (one eventlog.Decided, err error) {
	ctx, span := d.tracer.Start(a.trace, "decide "+a.command.Type,
		trace.WithAttributes(attribute.String("edumatrix.stream", a.command.Stream)))
	defer span.End()
	defer func() {
		if p := recover(); p != nil {
			d.logger.Error("deciding panicked", "command", a.command.ID, "type", a.command.Type, "panic", p,
				"stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
	}()
	one = eventlog.Decided{Actor: a.command.Actor, CommandID: a.command.ID, Type: a.command.Type, Digest: a.digest,
		Correlation: a.command.Correlation, TraceParent: telemetry.TraceParent(ctx)}
	if !a.command.Expires.IsZero() && d.now().After(a.command.Expires) {
		one.Kind, one.Code = envelope.Refused, refusal.Expired
		one.Text = "it came later than it was worth doing"
		return one, nil
	}
	events, err := state.Decide(a.origin(), a.message)
	refused, isRefusal := refusal.Of(err)
	switch {
	case isRefusal:
		one.Kind, one.Code, one.Text = envelope.Refused, refused.Code, refused.Text
	case err != nil:
		return one, err
	case len(events) == 0:
		one.Kind = envelope.Unchanged
	default:
		one.Kind, one.Events = envelope.Committed, events
		for _, e := range events {
			state.Evolve(a.command.Actor, e)
		}
	}
	span.SetAttributes(attribute.String("edumatrix.outcome", string(one.Kind)))
	return one, nil
}

// load gives the state of a stream with what the run's commands are about. A stream that was decided about lately costs
// no read.
func (d *decider) load(stream string, run []*asked) (*held, error) {
	named := subjects(run)
	h, known := d.states.Get(stream)
	d.states.Remove(stream) // it is put back when what is decided now is committed
	if known && len(named) == 0 {
		return h, nil
	}
	if !known {
		state, err := d.fresh(stream)
		if err != nil {
			return nil, err
		}
		h = &held{state: state}
	}
	loaded, err := d.log.Load(d.ctx, eventlog.Selection{Stream: stream, After: h.version, Subjects: named})
	if err != nil {
		return nil, err
	}
	if err := d.fold(h.state, loaded.Events); err != nil {
		return nil, err
	}
	h.version = loaded.Version
	return h, nil
}

func (d *decider) fresh(stream string) (State, error) {
	kind, _, _ := strings.Cut(stream, ":")
	newState, ok := d.aggregates[kind]
	if !ok {
		return nil, bus.Permanent(fmt.Errorf("no aggregate decides about %s", stream))
	}
	return newState(stream), nil
}

func (d *decider) fold(state State, events []envelope.Event) error {
	for _, e := range events {
		m, err := d.catalog.Decode(e.Type, e.Body)
		if err != nil {
			return fmt.Errorf("fold %s at version %d: %w", e.Stream, e.Version, err)
		}
		state.Evolve(e.Actor, m)
	}
	return nil
}

func subjects(run []*asked) (all []string) {
	for _, a := range run {
		if s := a.declared.Subject(a.message, a.origin()); s != "" {
			all = append(all, s)
		}
	}
	return all
}

// repeated answers those who have an outcome already; whoever is left is decided again.
func (d *decider) repeated(run []*asked, err error) ([]*asked, error) {
	var repeated *eventlog.RepeatedError
	if !errors.As(err, &repeated) {
		return run, err
	}
	var rest []*asked
	for i, a := range run {
		if first, ok := repeated.Outcomes[i]; ok {
			a.answer <- answer{result: first}
		} else {
			rest = append(rest, a)
		}
	}
	return rest, nil
}

func tell(run []*asked, results []envelope.Result) {
	for i, a := range run {
		a.answer <- answer{result: results[i], told: results[i].Kind == envelope.Committed}
	}
}

// failed records that a command could not be decided, so that it stays so, and gives its outcome.
func (d *decider) failed(ctx context.Context, c envelope.Command) (envelope.Result, error) {
	committed, err := d.log.Commit(ctx, eventlog.Write{Stream: c.Stream, Expected: eventlog.AnyVersion,
		Commands: []eventlog.Decided{{Actor: c.Actor, CommandID: c.ID, Type: c.Type, Digest: digest(c, c.Body), Correlation: c.Correlation,
			TraceParent: c.TraceParent, Kind: envelope.Failed, Code: refusal.Failed,
			Text: "it could not be decided; whoever runs the service finds it among the dead letters"}}})
	var repeated *eventlog.RepeatedError
	if errors.As(err, &repeated) {
		return repeated.Outcomes[0], nil
	} else if err != nil {
		return envelope.Result{}, err
	}
	return committed.Results[0], nil
}

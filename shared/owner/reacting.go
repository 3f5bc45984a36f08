package owner

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// commitDeciding decides commands that reactions yield, one after the other, each on the state of its stream, and commits
// their outcomes together with w, which has no commands of its own. The events that w appends lie behind those of the
// commands. A command that has an outcome already counts as done; a refusal is an outcome. Other errors are those of
// Log.Commit for w, or a *consume.CommandError.
//
// It decides on the states that are known, and once it has lost a race, under the log's lock.
func (d *decider) commitDeciding(ctx context.Context, commands []consume.Command, w eventlog.Write) (
	eventlog.Committed, error) {
	batch, err := d.batchOf(ctx, commands)
	if err != nil {
		return eventlog.Committed{}, err
	}
	commit := batch.attempt
	for {
		if len(batch.commands) == 0 {
			committed, err := d.log.Commit(ctx, w)
			if err == nil {
				batch.forget(w)
			}
			return committed, err
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
				batch.commands[i].refused = r
			}
		default:
			return committed, err
		}
	}
}

// batch is commands, possibly on several streams, that are decided and committed together.
type batch struct {
	decider  *decider
	commands []*asked       // in their order, without those that are done
	index    map[*asked]int // among those given
}

func (d *decider) batchOf(ctx context.Context, commands []consume.Command) (*batch, error) {
	b := &batch{decider: d, index: map[*asked]int{}}
	seen := map[catalog.Origin]bool{}
	for i, c := range commands {
		declared, ok := d.catalog.CommandOf(c.Message)
		if !ok {
			return nil, &consume.CommandError{Index: i,
				Err: fmt.Errorf("%s is not a command", c.Message.ProtoReflect().Descriptor().FullName())}
		}
		by := catalog.Origin{Actor: c.Actor, CommandID: c.ID}
		if seen[by] {
			continue // a repeat
		}
		seen[by] = true
		command := envelope.Command{ID: c.ID, Type: declared.Name, Stream: declared.Stream(c.Message, by), Actor: c.Actor,
			Correlation: c.Correlation, TraceParent: c.TraceParent}
		a := &asked{declared: declared, message: c.Message, digest: digestOfMessage(command, c.Message),
			trace: telemetry.Continue(ctx, c.TraceParent), command: command}
		b.commands, b.index[a] = append(b.commands, a), i
	}
	return b, nil
}

func (b *batch) has(stream string) bool {
	return slices.ContainsFunc(b.commands, func(a *asked) bool { return a.command.Stream == stream })
}

// runs are the commands by stream, and the streams in the order of their first commands.
func (b *batch) runs() (streams []string, runs map[string][]*asked) {
	runs = map[string][]*asked{}
	for _, a := range b.commands {
		stream := a.command.Stream
		if runs[stream] == nil {
			streams = append(streams, stream)
		}
		runs[stream] = append(runs[stream], a)
	}
	return streams, runs
}

// drop leaves out the commands that have an outcome.
func (b *batch) drop(outcomes map[int]envelope.Result) {
	var rest []*asked
	for i, a := range b.commands {
		first, done := outcomes[i]
		if !done {
			rest = append(rest, a)
		} else if first.Code == refusal.IDReused {
			b.decider.logger.Warn("a reaction yields another command than when the event came before; that one counts",
				"command", a.command.ID, "type", a.command.Type, "stream", a.command.Stream)
		}
	}
	b.commands = rest
}

// attempt decides on what is known of the streams.
func (b *batch) attempt(ctx context.Context, w eventlog.Write) (committed eventlog.Committed, err error) {
	states, err := b.load(ctx)
	if err != nil {
		return committed, err
	}
	at := b.clock(states)
	if w, err = b.decide(states, at, w); err != nil {
		return committed, err
	}
	if committed, err = b.decider.log.Commit(ctx, w); err != nil {
		return committed, err
	}
	for stream, h := range states {
		b.decider.keep(stream, h, at, committed.At)
	}
	b.forget(w)
	return committed, nil
}

// forget drops the states of streams that a Write has changed without deciding about them, or beside that.
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

// load returns the states of all streams. It reads those that are not kept in one round trip.
func (b *batch) load(ctx context.Context) (map[string]*held, error) {
	streams, runs := b.runs()
	states := make(map[string]*held, len(streams))
	var missing []eventlog.Selection
	for _, stream := range streams {
		err := b.guarded(stream, func() error {
			h, selection, complete, err := b.decider.known(stream, runs[stream])
			if states[stream] = h; err == nil && !complete {
				missing = append(missing, selection)
			}
			return err
		})
		if err != nil {
			return nil, b.failed(runs[stream][0], err)
		}
	}
	loaded, err := b.decider.log.LoadAll(ctx, missing)
	if err != nil && (errors.Is(err, bus.ErrAway) || ctx.Err() != nil) {
		return nil, err
	}
	for i, s := range missing {
		if err := b.guarded(s.Stream, func() error {
			one := eventlog.Loaded{}
			var failed error
			if err == nil {
				one = loaded[i]
			} else if one, failed = b.decider.log.Load(ctx, s); failed != nil { // whichever it was that failed
				return failed
			}
			return b.decider.fold(states[s.Stream], one)
		}); err != nil {
			return nil, b.failed(runs[s.Stream][0], err)
		}
	}
	return states, nil
}

// guarded turns a panic of an aggregate that is made of stored events into an error.
func (b *batch) guarded(stream string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.decider.logger.Error("loading panicked", "stream", stream, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("load %s: panic: %v", stream, p)
		}
	}()
	return do()
}

// failed returns the error of a command, or err as it is where the database is away: then the command is not to blame.
func (b *batch) failed(a *asked, err error) error {
	if err == nil || errors.Is(err, bus.ErrAway) {
		return err
	}
	return &consume.CommandError{Index: b.index[a], Err: err}
}

// clock is the time that all commands are decided at.
func (b *batch) clock(states map[string]*held) time.Time {
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
	streams, runs := b.runs()
	selections := make([]eventlog.Selection, len(streams))
	for i, stream := range streams {
		b.decider.states.take(stream)
		selections[i] = b.decider.selection(stream, runs[stream])
	}
	var written eventlog.Write
	committed, err := b.decider.log.CommitDecidingAll(ctx, selections,
		func(_ context.Context, loaded []eventlog.Loaded) (_ eventlog.Write, err error) {
			states := make(map[string]*held, len(streams))
			for i, stream := range streams {
				if states[stream], err = b.folded(stream, loaded[i]); err != nil {
					return w, b.failed(runs[stream][0], err)
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

func (b *batch) folded(stream string, loaded eventlog.Loaded) (h *held, err error) {
	err = b.guarded(stream, func() error {
		state, err := b.decider.fresh(stream)
		if err != nil {
			return err
		}
		h = &held{state: state}
		return b.decider.fold(h, loaded)
	})
	return h, err
}

// decide decides the commands in their order, whichever streams they are for: what one leads to in another stream, or
// whom it lets into a room, later ones have to see.
func (b *batch) decide(states map[string]*held, at time.Time, w eventlog.Write) (eventlog.Write, error) {
	w.Expected, w.DecidedAt, w.Commands = eventlog.AnyVersion, at, nil
	for _, a := range b.commands {
		one, err := b.decider.decideOne(states[a.command.Stream], at, a)
		if err == nil {
			err = b.evolveAlso(states, at, one)
		}
		if err != nil {
			return w, b.failed(a, fmt.Errorf("decide %s for %s: %w", a.command.Type, a.command.Stream, err))
		}
		w.Commands = append(w.Commands, one)
	}
	return w, nil
}

// evolveAlso applies the events that a command leads to in streams which later commands are decided about.
func (b *batch) evolveAlso(states map[string]*held, at time.Time, one eventlog.Decided) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	for _, also := range one.Also {
		h := states[also.Stream]
		if h == nil {
			continue
		}
		h.version++
		h.state.Evolve(catalog.NewFact(one.Actor, h.version, at, &h.timeRead), also.Event)
	}
	return nil
}

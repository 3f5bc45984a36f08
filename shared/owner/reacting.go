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
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/retry"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// commitDeciding decides the commands of reactions one after another, each on the state of its stream. It commits their
// outcomes together with the Write w, which has no commands of its own. The positions of w's events are above those of
// the commands' events. A command counts as done if it has an outcome already, such as a refusal. The error is an error
// of Log.Commit for w, or a *consume.CommandError.
//
// commitDeciding first decides on states that are cached or read from the log. If another commit has changed one of the
// streams since, it decides again under the log's lock.
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

// reactionBatch is a batch of commands, possibly for several streams, that are decided and committed together.
type reactionBatch struct {
	decider  *decider
	commands []*pendingCommand       // in order, without the commands that are done
	index    map[*pendingCommand]int // index of each command in the slice that was passed to batchOf
}

func (d *decider) batchOf(ctx context.Context, commands []consume.Command) (*reactionBatch, error) {
	b := &reactionBatch{decider: d, index: map[*pendingCommand]int{}}
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
		pc := &pendingCommand{declared: declared, message: c.Message, digest: digestOfMessage(command, c.Message),
			trace: telemetry.Continue(ctx, c.TraceParent), command: command}
		b.commands, b.index[pc] = append(b.commands, pc), i
	}
	return b, nil
}

func (b *reactionBatch) has(stream string) bool {
	return slices.ContainsFunc(b.commands, func(pc *pendingCommand) bool { return pc.command.Stream == stream })
}

// byStream returns the commands by stream, and the streams in the order of their first commands.
func (b *reactionBatch) byStream() (streams []string, batches map[string][]*pendingCommand) {
	batches = map[string][]*pendingCommand{}
	for _, pc := range b.commands {
		stream := pc.command.Stream
		if batches[stream] == nil {
			streams = append(streams, stream)
		}
		batches[stream] = append(batches[stream], pc)
	}
	return streams, batches
}

// drop removes the commands that have an outcome.
func (b *reactionBatch) drop(outcomes map[int]envelope.Outcome) {
	var rest []*pendingCommand
	for i, pc := range b.commands {
		first, done := outcomes[i]
		if !done {
			rest = append(rest, pc)
		} else if first.Code == refusal.IDReused {
			b.decider.logger.Warn("a reaction returned a different command for an event that was delivered before; the first command counts",
				"command", pc.command.ID, "type", pc.command.Type, "stream", pc.command.Stream)
		}
	}
	b.commands = rest
}

// attempt decides the commands on the states of their streams, which are cached or read from the log, and commits them
// together with the Write.
func (b *reactionBatch) attempt(ctx context.Context, w eventlog.Write) (committed eventlog.Committed, err error) {
	if err := b.decider.readRooms(ctx, b.commands); err != nil {
		return committed, err
	}
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

// forget drops the cached states of the streams of a Write's Appends, and of the other streams to which its commands
// have added events (eventlog.Decided.Also).
func (b *reactionBatch) forget(w eventlog.Write) {
	for _, a := range w.Appends {
		b.decider.states.take(a.Stream)
	}
	for _, c := range w.Commands {
		for _, also := range c.Also {
			b.decider.states.take(also.Stream)
		}
	}
}

// load returns the states of all streams of the batch. It reads the events that the cached states lack, in one round
// trip for all streams. If that fails because of the data, load reads stream by stream.
func (b *reactionBatch) load(ctx context.Context) (map[string]*loadedState, error) {
	streams, batches := b.byStream()
	states := make(map[string]*loadedState, len(streams))
	var missing []eventlog.Selection
	for _, stream := range streams {
		err := b.guarded(stream, func() error {
			h, selection, complete, err := b.decider.known(stream, batches[stream])
			if states[stream] = h; err == nil && !complete {
				missing = append(missing, selection)
			}
			return err
		})
		if err != nil {
			return nil, b.failed(batches[stream][0], err)
		}
	}
	loaded, err := b.decider.log.LoadAll(ctx, missing)
	if err != nil && (errors.Is(err, retry.ErrUnavailable) || ctx.Err() != nil) {
		return nil, err
	}
	for i, s := range missing {
		if err := b.guarded(s.Stream, func() error {
			one := eventlog.Loaded{}
			var failed error
			if err == nil {
				one = loaded[i]
			} else if one, failed = b.decider.log.Load(ctx, s); failed != nil { // shows which of the streams failed
				return failed
			}
			return b.decider.fold(states[s.Stream], one)
		}); err != nil {
			return nil, b.failed(batches[s.Stream][0], err)
		}
	}
	return states, nil
}

// guarded calls the function do, which loads a stream. It turns a panic of the aggregate on a stored event into an
// error.
func (b *reactionBatch) guarded(stream string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.decider.logger.Error("loading panicked", "stream", stream, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("load %s: panic: %v", stream, p)
		}
	}()
	return do()
}

// failed returns the error of a command in a *consume.CommandError. If err is nil, or the database is unavailable, the
// command is not at fault, and err is returned unchanged.
func (b *reactionBatch) failed(pc *pendingCommand, err error) error {
	if err == nil || errors.Is(err, retry.ErrUnavailable) {
		return err
	}
	return &consume.CommandError{Index: b.index[pc], Err: err}
}

// clock returns the time at which all commands are decided. It is not before the times of the states' events.
func (b *reactionBatch) clock(states map[string]*loadedState) time.Time {
	at := b.decider.log.Clock()
	for _, h := range states {
		if h.at.After(at) {
			at = h.at
		}
	}
	return at
}

// insideCommit decides the commands and commits them together with the Write, under the log's lock.
func (b *reactionBatch) insideCommit(ctx context.Context, w eventlog.Write) (eventlog.Committed, error) {
	streams, batches := b.byStream()
	selections := make([]eventlog.Selection, len(streams))
	for i, stream := range streams {
		b.decider.states.take(stream)
		selections[i] = b.decider.selection(stream, batches[stream])
	}
	if err := b.decider.readRooms(ctx, b.commands); err != nil {
		return eventlog.Committed{}, err
	}
	var written eventlog.Write
	committed, err := b.decider.log.CommitDecidingAll(ctx, selections,
		func(_ context.Context, loaded []eventlog.Loaded) (_ eventlog.Write, err error) {
			states := make(map[string]*loadedState, len(streams))
			for i, stream := range streams {
				if states[stream], err = b.folded(stream, loaded[i]); err != nil {
					return w, b.failed(batches[stream][0], err)
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

func (b *reactionBatch) folded(stream string, loaded eventlog.Loaded) (h *loadedState, err error) {
	err = b.guarded(stream, func() error {
		state, err := b.decider.fresh(stream)
		if err != nil {
			return err
		}
		h = &loadedState{state: state}
		return b.decider.fold(h, loaded)
	})
	return h, err
}

// decide adds the decided commands to the Write. It decides them in the order of the batch, not stream by stream,
// because each decision must take into account the events that earlier commands for other streams have added to the
// command's stream.
func (b *reactionBatch) decide(states map[string]*loadedState, at time.Time, w eventlog.Write) (eventlog.Write, error) {
	w.Expected, w.DecidedAt, w.Commands = eventlog.AnyVersion, at, nil
	for _, pc := range b.commands {
		one, err := b.decider.decideOne(states[pc.command.Stream], at, pc, pc.message)
		if err == nil {
			err = b.evolveAlso(states, at, one)
		}
		if err != nil {
			return w, b.failed(pc, fmt.Errorf("decide %s for %s: %w", pc.command.Type, pc.command.Stream, err))
		}
		w.Commands = append(w.Commands, one)
	}
	return w, nil
}

// evolveAlso applies a command's events for other streams to the states that later commands are decided on.
func (b *reactionBatch) evolveAlso(states map[string]*loadedState, at time.Time, one eventlog.Decided) (err error) {
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

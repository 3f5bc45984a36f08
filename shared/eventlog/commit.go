package eventlog

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Commit writes in the next transaction, with whatever else waits for it. Its errors:
//   - *ConflictError: the stream has moved on; load and decide again.
//   - *RepeatedError: some of the commands have outcomes already; leave them out and decide the rest again.
//   - *StaleCheckpointError: the checkpoint has been moved by another instance.
//   - *ParkedChangedError: what is parked of the topic has changed; read it and decide again.
//   - *RefusedError: some of the commands are refused by what they rest on; decide the rest again.
//   - *TimerError: some of the commands come of timers that are gone or not due; leave them out.
//   - *MemberError: the write fails by itself and always will.
//   - an error that wraps bus.ErrAway, or that of ctx: the database is away, or ctx ended first. Whether it was written
//     may be unknown; the same Write again is answered by its ids (RepeatedError,
//     StaleCheckpointError, ParkedChangedError) if it was.
//
// Nothing of the write was written with any of these but the last.
func (l *Log) Commit(ctx context.Context, w Write) (Committed, error) {
	p, err := l.prepare(ctx, w)
	if err != nil {
		return Committed{}, err
	}
	return l.wait(ctx, &member{ctx: ctx, prepared: p, answered: make(chan answer, 1)})
}

// CommitDeciding loads a stream and decides inside the next transaction, under the log's lock, where no version race
// can be lost. The Write's Stream and Expected are set from what was loaded. Decide must be quick, and may be called
// again. An error of its own is returned as it is.
func (l *Log) CommitDeciding(ctx context.Context, s Selection,
	decide func(context.Context, Loaded) (Write, error)) (Committed, error) {
	return l.CommitDecidingAll(ctx, []Selection{s}, func(ctx context.Context, all []Loaded) (Write, error) {
		w, err := decide(ctx, all[0])
		w.Stream, w.Expected, w.DecidedAt = s.Stream, all[0].Version, all[0].At
		return w, err
	})
}

// CommitDecidingAll does the same for several streams, of which none may be named twice. The Write's commands name their
// streams and the versions that were loaded.
func (l *Log) CommitDecidingAll(ctx context.Context, all []Selection,
	decide func(context.Context, []Loaded) (Write, error)) (Committed, error) {
	return l.wait(ctx, &member{ctx: ctx, selections: all, decide: decide, answered: make(chan answer, 1)})
}

func (l *Log) wait(ctx context.Context, m *member) (Committed, error) {
	if err := l.queue.put(m); err != nil {
		m.answer(Committed{}, err)
	}
	select {
	case a := <-m.answered:
		return a.committed, a.err
	case <-ctx.Done():
		return Committed{}, fmt.Errorf("append to the log of %s: %w", l.o.Owner, context.Cause(ctx))
	}
}

// member is one Write on its way into a shared transaction.
type member struct {
	ctx        context.Context
	prepared   *prepared // nil until decided
	selections []Selection
	decide     func(context.Context, []Loaded) (Write, error)
	alone      bool // never joins others
	answered   chan answer
}

type answer struct {
	committed Committed
	err       error
}

// answer is given once, and ends the member's spans.
func (m *member) answer(c Committed, err error) {
	if m.prepared != nil {
		m.prepared.end(err)
	}
	m.answered <- answer{c, err}
}

// Outcome finds the outcome of a command.
func (l *Log) Outcome(ctx context.Context, actor, commandID string) (envelope.Result, bool, error) {
	r := envelope.Result{Actor: actor, CommandID: commandID, Source: l.o.Owner}
	err := l.o.Pool.QueryRow(ctx, l.sql.outcome, actor, commandID).
		Scan(&r.Type, &r.Stream, &r.Kind, &r.Version, &r.Position, &r.Code, &r.Text)
	if errors.Is(err, pgx.ErrNoRows) {
		return envelope.Result{}, false, nil
	}
	if err != nil {
		return envelope.Result{}, false, fmt.Errorf("read the outcome of %s of %s: %w", commandID, actor, Away(err))
	}
	return r, true, nil
}

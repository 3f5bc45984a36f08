package eventlog

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Commit commits a Write in a transaction, usually together with all other pending writes. Its errors:
//   - *ConflictError: a stream is not at the expected version; load it and decide again.
//   - *RepeatedError: some of the commands have outcomes already; leave them out and decide the rest again.
//   - *inbox.StaleCheckpointError: the checkpoint does not exist, or it has moved, for example because another instance
//     consumes the partition.
//   - *inbox.ParkedChangedError: the parked streams of the topic have changed; read them and decide again.
//   - *RefusedError: the log refuses some of the commands; decide the rest again.
//   - *TimerError: the timers of some of the commands are gone or not due; leave these commands out.
//   - *WriteError: the write itself is at fault and fails whenever it is tried.
//   - an error that wraps retry.ErrUnavailable (the database is unavailable or too slow, or Run has ended), or the
//     cause of ctx (ctx ended first). The write may or may not have been committed, so commit it again. If it was
//     committed, Commit recognizes its command ids, Advance or Resolution, and returns a RepeatedError, an
//     inbox.StaleCheckpointError or an inbox.ParkedChangedError. A Write without command ids, Advance and
//     Resolution may be appended twice.
//
// With every error but the last in this list, this call has committed nothing.
func (l *Log) Commit(ctx context.Context, w Write) (Committed, error) {
	p, err := l.prepare(ctx, w)
	if err != nil {
		return Committed{}, err
	}
	return l.wait(ctx, &pendingWrite{ctx: ctx, prepared: p, outcome: make(chan writeOutcome, 1)})
}

// CommitDeciding loads a stream and calls the function decide inside a transaction, under the log's lock, so that no
// other write can change the stream between the load and this write. CommitDeciding sets the Write's Stream, Expected
// and DecidedAt from the loaded stream. The function decide must be quick and may be called several times.
// CommitDeciding returns an error of decide unchanged; all other errors are those of Commit.
func (l *Log) CommitDeciding(ctx context.Context, s Selection,
	decide func(context.Context, Loaded) (Write, error)) (Committed, error) {
	return l.CommitDecidingAll(ctx, []Selection{s}, func(ctx context.Context, all []Loaded) (Write, error) {
		w, err := decide(ctx, all[0])
		w.Stream, w.Expected, w.DecidedAt = s.Stream, all[0].Version, all[0].At
		return w, err
	})
}

// CommitDecidingAll is CommitDeciding for several different streams. It does not change the Write: the function decide
// sets DecidedAt and, for each command, the Stream and the loaded version as Expected.
func (l *Log) CommitDecidingAll(ctx context.Context, all []Selection,
	decide func(context.Context, []Loaded) (Write, error)) (Committed, error) {
	return l.wait(ctx, &pendingWrite{ctx: ctx, selections: all, decide: decide, outcome: make(chan writeOutcome, 1)})
}

func (l *Log) wait(ctx context.Context, pw *pendingWrite) (Committed, error) {
	if err := l.queue.put(pw); err != nil {
		pw.finish(Committed{}, err)
	}
	select {
	case a := <-pw.outcome:
		return a.committed, a.err
	case <-ctx.Done():
		return Committed{}, fmt.Errorf("append to the log of %s: %w", l.o.Owner, context.Cause(ctx))
	}
}

// pendingWrite is a Write that waits for its transaction.
type pendingWrite struct {
	ctx        context.Context
	prepared   *prepared // for a write with a function decide: nil until this function has returned
	selections []Selection
	decide     func(context.Context, []Loaded) (Write, error)
	alone      bool // gets a transaction of its own
	outcome    chan writeOutcome
}

type writeOutcome struct {
	committed Committed
	err       error
}

// finish delivers the outcome of the write and ends its trace spans. It must be called exactly once.
func (pw *pendingWrite) finish(c Committed, err error) {
	if pw.prepared != nil {
		pw.prepared.end(err)
	}
	pw.outcome <- writeOutcome{c, err}
}

// finishEnded finishes the write if its context has ended, and reports whether the context has ended.
func (pw *pendingWrite) finishEnded() bool {
	ended := pw.ctx.Err() != nil
	if ended {
		pw.finish(Committed{}, context.Cause(pw.ctx))
	}
	return ended
}

// Outcome returns the stored outcome of a command, and whether there is one.
func (l *Log) Outcome(ctx context.Context, actor, commandID string) (envelope.Outcome, bool, error) {
	r := envelope.Outcome{Actor: actor, CommandID: commandID, Source: l.o.Owner}
	err := l.o.Pool.QueryRow(ctx, l.sql.outcome, actor, commandID).
		Scan(&r.Type, &r.Stream, &r.Kind, &r.Version, &r.Position, &r.Code, &r.Text, &r.Field)
	if errors.Is(err, pgx.ErrNoRows) {
		return envelope.Outcome{}, false, nil
	}
	if err != nil {
		return envelope.Outcome{}, false, fmt.Errorf("read the outcome of %s of %s: %w", commandID, actor, Unavailable(err))
	}
	return r, true, nil
}

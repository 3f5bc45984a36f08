package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Projection is rows that follow from the log and from nothing else.
type Projection interface {
	// Name is under which its position is kept; it never changes.
	Name() string
	// Apply writes what follows from events, ascending by position, each given once. The transaction's search_path is the
	// owner's schema.
	Apply(ctx context.Context, tx pgx.Tx, events []envelope.Event) error
}

// breath is how long a projection lets commits gather; a query that waits for its own write waits that much longer.
const breath = 10 * time.Millisecond

// batch is how many events a projection or a relay takes at a time.
const batch = 500

// Follow applies the log to a projection until ctx ends: in batches, from where it was left, one instance at a time, at
// once after a commit. A failure is tried again with back-off.
func (l *Log) Follow(ctx context.Context, p Projection) error {
	var again backoff
	for ctx.Err() == nil {
		_, moved := l.head.now()
		applied, err := l.applyNext(ctx, p)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			l.waiting.set("projection "+p.Name(), "postgres", err) // a projection that cannot go on makes the service unhealthy, whatever the error
			l.o.Log.WarnContext(ctx, "projection does not go on, trying again", "projection", p.Name(), "error", err)
			again.wait(ctx)
		default:
			again.reset()
			l.waiting.set("projection "+p.Name(), "postgres", nil)
			if applied < batch {
				await(ctx, moved, poll)
				// Events that are committed within the next moment go into the same transaction.
				await(ctx, nil, breath)
			}
		}
	}
	return nil
}

// await returns when something moved, after a while, or when ctx ends.
func await(ctx context.Context, moved <-chan struct{}, most time.Duration) {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-moved:
	case <-t.C:
	}
}

// applyNext applies the next batch in one transaction with the projection's position, and says how many events it had.
// While another instance does that it does nothing.
func (l *Log) applyNext(ctx context.Context, p Projection) (applied int, err error) {
	var position int64
	err = pgx.BeginFunc(ctx, l.o.Pool, func(tx pgx.Tx) error {
		if err := l.enter(ctx, tx); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, l.sql.takeProjection, p.Name()).Scan(&position)
		if errors.Is(err, pgx.ErrNoRows) {
			// Another instance has it, or it is new.
			added, err := tx.Exec(ctx, l.sql.addProjection, p.Name())
			if err != nil || added.RowsAffected() == 0 {
				return err
			}
		} else if err != nil {
			return err
		}
		found, err := tx.Query(ctx, l.sql.read, position, int64(1<<62), batch, "")
		if err != nil {
			return err
		}
		events, err := l.scanAll(found)
		if applied = len(events); err != nil || applied == 0 {
			return err
		}
		if err := p.Apply(ctx, tx, eventsOf(events)); err != nil {
			err = fmt.Errorf("apply %d to %d: %w", events[0].Position, events[applied-1].Position, err)
			if tx.Conn().IsClosed() {
				return err
			}
			return &ownFault{err}
		}
		position = events[applied-1].Position
		_, err = tx.Exec(ctx, l.sql.saveProjection, p.Name(), position)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("projection %s of %s: %w", p.Name(), l.o.Owner, Away(err))
	}
	l.applied.of(p.Name()).reach(position)
	return applied, nil
}

// enter prepares a transaction for a projection's own statements. A process that freezes in it does not hold it for
// long.
func (l *Log) enter(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true),
  set_config('idle_in_transaction_session_timeout', '5s', true)`, pgx.Identifier{l.o.Owner}.Sanitize())
	return err
}

// Reset empties a projection and lets it be applied from the beginning; empty removes its rows.
func (l *Log) Reset(ctx context.Context, projection string, empty func(context.Context, pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, l.o.Pool, func(tx pgx.Tx) error {
		if err := l.enter(ctx, tx); err != nil {
			return err
		}
		// First the position: that waits for a batch that is being applied.
		if _, err := tx.Exec(ctx, l.sql.dropProjection, projection); err != nil {
			return err
		}
		return empty(ctx, tx)
	})
	l.applied.byName.Delete(projection)
	if err != nil {
		return fmt.Errorf("reset projection %s of %s: %w", projection, l.o.Owner, Away(err))
	}
	return nil
}

// WaitFor returns when a projection has applied the log up to a position, in whatever instance.
func (l *Log) WaitFor(ctx context.Context, projection string, position int64) error {
	here := l.applied.of(projection)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		have, moved := here.now()
		if have >= position {
			return nil
		}
		await(ctx, moved, wait)
		if have, _ = here.now(); have >= position {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for projection %s to reach %d, it is at %d: %w", projection, position, have, err)
		}
		// Another instance may be the one that applies it.
		if err := l.o.Pool.QueryRow(ctx, l.sql.projection, projection).Scan(&have); err != nil {
			return fmt.Errorf("read the position of projection %s: %w", projection, Away(err))
		}
		here.reach(have)
	}
}

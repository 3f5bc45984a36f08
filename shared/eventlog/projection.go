package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/shared/envelope"
)

// Projection is rows that follow from the log and from nothing else.
type Projection interface {
	// Name is under which its position is kept; it never changes.
	Name() string
	// Apply writes what follows from events, ascending by position, each given once. The search_path of the transaction is
	// the owner's schema. Each of its statements is a round trip, unless they are sent in a batch.
	Apply(ctx context.Context, tx Tx, events []envelope.Event) error
}

// Tx is what a projection reads and writes its rows with, in the transaction that saves its position. It begins no other
// transaction and does not end this one.
type Tx interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// breath is how long a projection lets commits gather, unless a query of this process waits for one of them.
const breath = 30 * time.Millisecond

// batch is how many events a projection or a relay takes at a time.
const batch = 500

// maxApply bounds a batch, so that a connection that no answer comes from is given up.
const maxApply = time.Minute

// standbyPoll is how soon, about, another instance goes on with a projection whose instance has ended.
const standbyPoll = time.Second

// Follow applies the log to a projection until ctx ends: in batches, from where it was left, one instance at a time, at
// once after a commit. A failed batch is tried again with back-off. Nothing waits for its transactions to be on disk: those
// that a crash of the server loses are applied again.
func (l *Log) Follow(ctx context.Context, p Projection) error {
	f := &follower{log: l, p: p, name: "projection " + p.Name(), here: l.applied.of(p.Name())}
	for ctx.Err() == nil {
		if err := f.lead(ctx); err != nil && ctx.Err() == nil {
			f.failed(ctx, err)
		}
	}
	return nil
}

// follower applies a log to a projection.
type follower struct {
	log  *Log
	p    Projection
	name string
	here *progress

	lease    *lease
	position int64     // up to which the projection is applied
	checked  time.Time // when that was read, or saved
	again    backoff
}

func (f *follower) failed(ctx context.Context, err error) {
	f.log.waiting.set(f.name, "postgres", err) // one that cannot go on is unhealthy, whatever it is
	f.log.o.Log.WarnContext(ctx, "projection does not go on, trying again", "projection", f.p.Name(), "error", err)
	f.again.wait(ctx)
}

func (f *follower) goesOn() { f.log.waiting.set(f.name, "postgres", nil) }

// lead applies the log for as long as the lease holds.
func (f *follower) lead(ctx context.Context) error {
	lease, ctx, err := f.log.takeLease(ctx, f.name, leaseRenewal, standbyPoll, f.goesOn)
	if err != nil {
		return err
	}
	defer lease.giveUp(ctx)
	f.lease = lease
	// A server that has crashed may have lost what was known.
	f.here.forget()
	if err := f.check(ctx); err != nil {
		return err
	}
	for ctx.Err() == nil {
		_, moved := f.log.head.now()
		applied, err := f.applyNext(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.failed(ctx, err)
		default:
			f.again.reset()
			f.goesOn()
			if applied < batch {
				await(ctx, moved, poll)
				// Events that are committed within the next moment go into the same transaction.
				await(ctx, f.here.demand(), breath)
			}
		}
	}
	return context.Cause(ctx)
}

// check reads where the projection and the log are. Another one may have moved the projection: a rebuild, a reset.
func (f *follower) check(ctx context.Context) error {
	b := &pgx.Batch{}
	b.Queue(f.log.sql.addProjection, f.p.Name())
	b.Queue(f.log.sql.projection, f.p.Name()).QueryRow(func(row pgx.Row) error { return row.Scan(&f.position) })
	err := f.lease.lend(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		era := f.here.current()
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		f.here.reachIn(era, f.position)
		_, _, err := f.log.readHead(ctx, conn)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the position of projection %s: %w", f.p.Name(), Away(err))
	}
	f.checked = time.Now()
	return nil
}

// applyNext applies the next batch in one transaction with the projection's position, and returns how many events it had.
func (f *follower) applyNext(ctx context.Context) (applied int, err error) {
	if head, _ := f.log.head.now(); head <= f.position && time.Since(f.checked) < poll {
		return 0, nil
	} else if head <= f.position {
		if err := f.check(ctx); err != nil {
			return 0, err
		}
		if head, _ = f.log.head.now(); head <= f.position {
			return 0, nil
		}
	}
	bounded, cancel := context.WithTimeout(ctx, maxApply)
	defer cancel()
	var problem error
	err = f.lease.lend(bounded, func(ctx context.Context, conn *pgx.Conn) error {
		if applied, problem = f.transact(ctx, conn); problem == nil || conn.IsClosed() {
			return problem
		}
		_, err := conn.Exec(ctx, "ROLLBACK")
		return err
	})
	if problem != nil {
		err = problem
	}
	if err != nil {
		return 0, fmt.Errorf("projection %s of %s: %w", f.p.Name(), f.log.o.Owner, Away(err))
	}
	return applied, nil
}

// transact takes a round trip to begin and read, those of Apply, and one to save and commit; one more where it finds no
// event.
func (f *follower) transact(ctx context.Context, conn *pgx.Conn) (applied int, err error) {
	l, era := f.log, f.here.current()
	var events []logged
	stored := int64(-1)
	read := func(rows pgx.Rows) (err error) {
		events, err = l.scanAll(rows)
		return err
	}
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	// The row is locked before any other, in the order of a rebuild that takes over.
	b.Queue(l.sql.takeProjection, f.p.Name()).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&stored}, func() error { return nil })
		return err
	})
	b.Queue(l.sql.read, f.position, int64(1<<62), batch, "").Query(read)
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return 0, err
	}
	if stored != f.position {
		if stored < 0 {
			return 0, f.added(ctx, conn)
		}
		f.position = stored
		found, err := conn.Query(ctx, l.sql.read, f.position, int64(1<<62), batch, "")
		if err == nil {
			err = read(found)
		}
		if err != nil {
			return 0, err
		}
	}
	position := f.position
	if len(events) == 0 {
		// The log may have begun another incarnation, whose floor no event has. The floor is read first: every event below it
		// is then found by the read that follows.
		var floor int64
		b = &pgx.Batch{}
		b.Queue(l.sql.floor).QueryRow(func(row pgx.Row) error { return row.Scan(&floor) })
		b.Queue(l.sql.read, f.position, int64(1<<62), batch, "").Query(read)
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return 0, err
		}
		if len(events) == 0 {
			position = max(position, floor)
		}
	}
	b = &pgx.Batch{}
	if len(events) > 0 {
		position = events[len(events)-1].Position
		if err := f.p.Apply(ctx, conn, eventsOf(events)); err != nil {
			err = fmt.Errorf("apply %d to %d: %w", events[0].Position, position, err)
			if conn.IsClosed() {
				return 0, err
			}
			return 0, &ownFault{err}
		}
	}
	if position > f.position {
		b.Queue(l.sql.saveProjection, f.p.Name(), position)
	}
	b.Queue("COMMIT")
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return 0, err
	}
	if s := conn.PgConn().TxStatus(); s != 'I' {
		return 0, fmt.Errorf("the transaction did not end: status %c", s)
	}
	f.position, f.checked = position, time.Now()
	f.here.reachIn(era, position)
	return len(events), nil
}

// added has a projection begin at the beginning after a reset has removed its row.
func (f *follower) added(ctx context.Context, conn *pgx.Conn) error {
	b := &pgx.Batch{}
	b.Queue(f.log.sql.addProjection, f.p.Name())
	b.Queue("COMMIT")
	f.position = 0
	return conn.SendBatch(ctx, b).Close()
}

// await returns when something moved, after a while, or when ctx ends.
func await(ctx context.Context, moved <-chan struct{}, patience time.Duration) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-moved:
	case <-t.C:
	}
}

// enter prepares a transaction for the statements of a projection that is emptied. A process that freezes in it does not
// hold it for long.
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
	l.applied.of(projection).forget()
	if err != nil {
		return fmt.Errorf("reset projection %s of %s: %w", projection, l.o.Owner, Away(err))
	}
	return nil
}

// WaitFor returns when a projection has applied the log up to a position, in whatever instance. The rows are
// then read within the same call of Reading.
func (l *Log) WaitFor(ctx context.Context, projection string, position int64) error {
	here := l.applied.of(projection)
	if have, _ := here.now(); have >= position {
		return nil
	}
	defer here.wait()()
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
		era := here.current()
		if err := l.o.Pool.QueryRow(ctx, l.sql.projection, projection).Scan(&have); err != nil {
			return fmt.Errorf("read the position of projection %s: %w", projection, Away(err))
		}
		here.reachIn(era, have)
	}
}

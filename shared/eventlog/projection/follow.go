package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/progress"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Applier is a projection, whose rows are derived from the log alone: a declared Projection, or a type with SQL of its
// own.
type Applier interface {
	// Name is the key under which the projection's position is stored. It must never change.
	Name() string
	// Apply writes the rows that follow from events, which ascend by position. Each event takes effect once. The
	// search_path of the transaction is the owner's schema or, in a rebuild, the schema with the new tables. Every
	// statement costs a round trip, unless several are sent in one batch.
	Apply(ctx context.Context, tx Tx, events []envelope.Event) error
}

const (
	sqlAdd      = `INSERT INTO owner.projections (name, position) VALUES ($1, 0) ON CONFLICT DO NOTHING`
	sqlTake     = `SELECT position FROM owner.projections WHERE name = $1 FOR UPDATE`
	sqlPosition = `SELECT coalesce((SELECT position FROM owner.projections WHERE name = $1), 0)`
	sqlSave     = `UPDATE owner.projections SET position = $2 WHERE name = $1`
	sqlDrop     = `DELETE FROM owner.projections WHERE name = $1`

	sqlFloor = `SELECT floor FROM owner.incarnations ORDER BY number DESC LIMIT 1`
)

// Tx is the transaction in which a projection's rows and its position are stored. It offers neither commit nor nested
// transactions.
type Tx interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// gatherDelay is how long a projection waits for further commits, so that it applies several commits in one
// transaction. The wait ends at once if a query of this process waits for the projection.
const gatherDelay = 30 * time.Millisecond

// maxBatch is the maximum number of events that are read at a time.
const maxBatch = 500

// pollInterval is how long a projection waits for a notification that the log has moved. After this time, it reads the
// log even without a notification.
const pollInterval = time.Second

// maxApply bounds the time of a batch, so that a connection on which the server does not respond is given up.
const maxApply = time.Minute

// standbyPollInterval is the approximate time after which another instance takes over a projection whose instance has
// ended.
const standbyPollInterval = time.Second

// Follow applies the log to a projection until ctx ends. It continues at the stored position and applies batches of
// events soon after their commit. One instance at a time does so. Follow retries a failed batch with back-off. The
// transactions of batches do not wait for the disk: if a crash of the server undoes some of them, their events are
// applied again.
func Follow(ctx context.Context, l *eventlog.Log, p Applier) error {
	newFollower(l, p).run(ctx)
	return nil
}

func newFollower(l *eventlog.Log, p Applier) *follower {
	return &follower{log: l, o: l.Options(), p: p, name: "projection " + p.Name(), progress: l.Applied().Of(p.Name())}
}

func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := f.lead(ctx); err != nil && ctx.Err() == nil {
			f.failed(ctx, err)
		}
	}
}

// follower applies a log to a projection.
type follower struct {
	log      *eventlog.Log
	o        eventlog.Options // of the log
	p        Applier
	name     string
	progress *progress.Progress

	silence  time.Duration // see advisory.LeaseOptions; 0: the default of that package
	lease    *advisory.Lease
	position catalog.Position // position up to which the projection is applied
	checked  time.Time        // when the position was read or saved
	backoff  retry.Backoff
}

func (f *follower) failed(ctx context.Context, err error) {
	f.log.SetWaiting(f.name, "postgres", err) // a projection that makes no progress is unhealthy, whatever the reason
	f.o.Log.WarnContext(ctx, "projection stopped, retrying", "projection", f.p.Name(), "error", err)
	f.backoff.Wait(ctx)
}

func (f *follower) recovered() { f.log.SetWaiting(f.name, "postgres", nil) }

// lead waits for the lease, and applies the log while this instance holds it.
func (f *follower) lead(ctx context.Context) error {
	lease, ctx, err := f.log.TakeLease(ctx, f.name, advisory.LeaseOptions{Every: standbyPollInterval,
		Standby: f.recovered, Silence: f.silence})
	if err != nil {
		return err
	}
	defer lease.Release(ctx)
	f.lease = lease
	// A crash of the server may have undone transactions that led to the position in memory.
	f.progress.Forget()
	if err := f.check(ctx); err != nil {
		return err
	}
	for ctx.Err() == nil {
		_, moved := f.log.Seen()
		applied, err := f.applyNext(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.failed(ctx, err)
		default:
			f.backoff.Reset()
			f.recovered()
			if applied < maxBatch {
				retry.Await(ctx, moved, pollInterval)
				// Wait a little, so that events that are committed in the next moment go into the same transaction.
				retry.Await(ctx, f.progress.Demand(), gatherDelay)
			}
		}
	}
	return context.Cause(ctx)
}

// check reads the positions of the projection and of the log, and inserts the projection's row if there is none. A
// rebuild or a reset may have changed the projection's position.
func (f *follower) check(ctx context.Context) error {
	b := &pgx.Batch{}
	b.Queue(f.log.SQL(sqlAdd), f.p.Name())
	b.Queue(f.log.SQL(sqlPosition), f.p.Name()).QueryRow(func(row pgx.Row) error { return row.Scan(&f.position) })
	err := f.lease.Lend(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		era := f.progress.Current()
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		f.progress.ReachIn(era, f.position)
		_, err := f.log.ReadHead(ctx, conn)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the position of projection %s: %w", f.p.Name(), eventlog.Unavailable(err))
	}
	f.checked = time.Now()
	return nil
}

// applyNext applies the next batch, and saves the projection's position in the same transaction. It returns the number
// of events.
func (f *follower) applyNext(ctx context.Context) (applied int, err error) {
	if head, _ := f.log.Seen(); head <= f.position && time.Since(f.checked) < pollInterval {
		return 0, nil
	} else if head <= f.position {
		if err := f.check(ctx); err != nil {
			return 0, err
		}
		if head, _ = f.log.Seen(); head <= f.position {
			return 0, nil
		}
	}
	bounded, cancel := context.WithTimeout(ctx, maxApply)
	defer cancel()
	var problem error
	err = f.lease.Lend(bounded, func(ctx context.Context, conn *pgx.Conn) error {
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
		return 0, fmt.Errorf("projection %s of %s: %w", f.p.Name(), f.o.Owner, eventlog.Unavailable(err))
	}
	return applied, nil
}

// transact applies the next batch. It takes one round trip to begin and read, the round trips of Apply, and one to save
// and commit. It takes one more if it finds no event, and one more if the stored position is not the one in memory.
func (f *follower) transact(ctx context.Context, conn *pgx.Conn) (applied int, err error) {
	l, era := f.log, f.progress.Current()
	var events []eventlog.Logged
	stored := catalog.Position(-1)
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	// Lock the projection's row first, as a rebuild that takes over does, to avoid a deadlock.
	b.Queue(l.SQL(sqlTake), f.p.Name()).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&stored}, func() error { return nil })
		return err
	})
	l.QueueRead(b, f.position, maxBatch, &events)
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return 0, err
	}
	if stored != f.position {
		if stored < 0 {
			return 0, f.insertRow(ctx, conn)
		}
		f.position = stored
		b = &pgx.Batch{}
		l.QueueRead(b, f.position, maxBatch, &events)
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return 0, err
		}
	}
	position := f.position
	if len(events) == 0 {
		// The log may have begun another incarnation, whose floor is above every event. Once the floor can be read, no
		// event below the floor is added any more. So read the floor first; the second read of events then finds every
		// event below the floor.
		var floor catalog.Position
		b = &pgx.Batch{}
		b.Queue(l.SQL(sqlFloor)).QueryRow(func(row pgx.Row) error { return row.Scan(&floor) })
		l.QueueRead(b, f.position, maxBatch, &events)
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
		if err := f.p.Apply(ctx, conn, eventlog.Events(events)); err != nil {
			err = fmt.Errorf("apply %d to %d: %w", events[0].Position, position, err)
			if conn.IsClosed() {
				return 0, err
			}
			return 0, pgerror.Data(err)
		}
	}
	if position > f.position {
		b.Queue(l.SQL(sqlSave), f.p.Name(), position)
	}
	b.Queue("COMMIT")
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return 0, err
	}
	if s := conn.PgConn().TxStatus(); s != 'I' {
		return 0, fmt.Errorf("the transaction did not end: status %c", s)
	}
	f.position, f.checked = position, time.Now()
	f.progress.ReachIn(era, position)
	return len(events), nil
}

// insertRow inserts the projection's row, which a reset has removed, and commits. The projection then starts from the
// beginning.
func (f *follower) insertRow(ctx context.Context, conn *pgx.Conn) error {
	b := &pgx.Batch{}
	b.Queue(f.log.SQL(sqlAdd), f.p.Name())
	b.Queue("COMMIT")
	f.position = 0
	return conn.SendBatch(ctx, b).Close()
}

// Reset empties a projection, so that it is applied from the beginning again. The function empty removes the rows.
func Reset(ctx context.Context, l *eventlog.Log, projection string, empty func(context.Context, pgx.Tx) error) error {
	o := l.Options()
	err := pgx.BeginFunc(ctx, o.Pool, func(tx pgx.Tx) error {
		// The server ends the transaction if this process freezes in it.
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true),
  set_config('idle_in_transaction_session_timeout', '5s', true)`, pgx.Identifier{o.Owner}.Sanitize()); err != nil {
			return err
		}
		// Remove the position first. The statement waits until a batch that is being applied has ended.
		if _, err := tx.Exec(ctx, l.SQL(sqlDrop), projection); err != nil {
			return err
		}
		return empty(ctx, tx)
	})
	l.Applied().Of(projection).Forget()
	if err != nil {
		return fmt.Errorf("reset projection %s of %s: %w", projection, o.Owner, eventlog.Unavailable(err))
	}
	return nil
}

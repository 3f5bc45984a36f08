package eventlog

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/shared/sleep"
)

// A statement that waits for an advisory lock holds a snapshot, and no row version that is younger can be vacuumed in the
// whole database for as long as it waits. So nobody waits in one for long: who may have to wait for days is idle in
// between (awaitLock), and who waits for the log's own lock, which is held for milliseconds, begins anew after lockPiece.

// lockPoll is how often a relay or a migration tries to get a lock that another instance has.
const lockPoll = 400 * time.Millisecond

// awaitLock waits for an advisory lock of the session, which it tries to get every so often.
func awaitLock(ctx context.Context, conn *pgx.Conn, key int64, every time.Duration) error {
	for {
		var got bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&got); err != nil || got {
			return err
		}
		if !sleep.For(ctx, every*3/4+rand.N(every/2)) {
			return context.Cause(ctx)
		}
	}
}

// lockPiece is for how long a statement waits for the log's lock. Waiting in the server's queue, rather than trying now
// and then, keeps instances that commit all the time from shutting each other out.
const lockPiece = 250 * time.Millisecond

// lockTaken reports whether a statement waited for a lock as long as it may.
func lockTaken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03" // lock_not_available
}

// underLock calls f in a transaction that holds the log's lock.
func (l *Log) underLock(ctx context.Context, conn interface {
	Begin(context.Context) (pgx.Tx, error)
}, f func(pgx.Tx) error) error {
	hold := milliseconds(l.times.hold)
	for end := time.Now().Add(l.times.lock); ; {
		locked := false
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, sqlGuard, milliseconds(lockPiece), hold, true); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, sqlLock, lockKey(l.o.Owner, "append"), hold); err != nil {
				return err
			}
			locked = true
			return f(tx)
		})
		if locked || !lockTaken(err) || time.Now().After(end) {
			return err
		}
	}
}

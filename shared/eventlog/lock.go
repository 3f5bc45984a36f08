package eventlog

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// lockPollInterval is how often a migration tries to get a lock that another instance may hold for days.
const lockPollInterval = 400 * time.Millisecond

// lockWaitSlice is how long one statement waits for the log's own lock, which is held for milliseconds; then another
// statement waits, with a new snapshot. Waiting in the server's queue, rather than trying now and then
// (advisory.Await), keeps busy instances from starving each other.
const lockWaitSlice = 250 * time.Millisecond

// lockTaken reports whether a statement failed because it did not get a lock in time.
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
			if _, err := tx.Exec(ctx, sqlGuard, milliseconds(lockWaitSlice), hold, true); err != nil {
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

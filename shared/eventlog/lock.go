package eventlog

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// lockPollInterval is the average interval at which an instance tries to get the lock for migrations. The instance that
// migrates holds this lock until its migrations have ended.
const lockPollInterval = 400 * time.Millisecond

// lockWaitSlice is how long one statement waits for the log's lock, which is usually held for milliseconds. The
// snapshot of a waiting statement keeps obsolete row versions from being vacuumed. So after this time, another
// statement with a new snapshot waits. Waiting in the server's queue, instead of polling as advisory.Await does, keeps
// busy instances from starving each other.
const lockWaitSlice = 250 * time.Millisecond

// isLockTimeout reports whether a statement failed because it did not get a lock in time.
func isLockTimeout(err error) bool {
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
		if locked || !isLockTimeout(err) || time.Now().After(end) {
			return err
		}
	}
}

// HoldLock calls the function f while the database session of conn holds the log's lock, so that nothing is appended
// meanwhile. The context of f ends after MaxHold. The lock is released when f returns, or when the server ends the
// session (see MaxHold). HoldLock continues even if ctx ends, because its duration is bounded. It returns how long it
// held the lock.
func (l *Log) HoldLock(ctx context.Context, conn *pgx.Conn, f func(context.Context) error) (held time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.times.lock+l.times.hold)
	defer cancel()
	hold := milliseconds(l.times.hold)
	if err := l.lockSession(ctx, conn); err != nil {
		_, _ = conn.Exec(ctx, "SELECT set_config('lock_timeout', '0', false)") // fails only on a broken connection
		return 0, err
	}
	begun := time.Now()
	ctx, cancelHold := context.WithTimeout(ctx, l.times.hold)
	defer cancelHold()
	defer func() {
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, undone := conn.Exec(release, `SELECT pg_advisory_unlock($1), set_config('idle_session_timeout', '0', false),
  set_config('transaction_timeout', '0', false), set_config('lock_timeout', '0', false)`, l.LockKey("append"))
		if undone != nil {
			_ = conn.Close(release) // ending the database session releases the lock
		}
		held = time.Since(begun)
	}()
	// If this process freezes, or a statement takes too long, the server ends the database session and releases the lock.
	// The lock timeout for tables is short, so that this connection gives up in a deadlock with another connection. It
	// gives up before the server checks for deadlocks, which happens after 1 s by default and could end the statement of
	// the other connection.
	if _, err := conn.Exec(ctx, `SELECT set_config('idle_session_timeout', $1, false),
  set_config('transaction_timeout', $1, false), set_config('lock_timeout', '500ms', false)`, hold); err != nil {
		return 0, err
	}
	return 0, f(ctx)
}

// lockSession takes the log's lock for the database session of conn. It waits for lockWaitSlice at a time, as commits
// do.
func (l *Log) lockSession(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "SELECT set_config('lock_timeout', $1, false)", milliseconds(lockWaitSlice))
	if err != nil {
		return err
	}
	for end := time.Now().Add(l.times.lock); ; {
		_, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", l.LockKey("append"))
		if !isLockTimeout(err) || time.Now().After(end) {
			return err
		}
	}
}

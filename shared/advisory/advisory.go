// Package advisory takes advisory locks of PostgreSQL without waiting in a statement. A waiting statement holds a
// snapshot. While the snapshot is held, row versions that become obsolete cannot be vacuumed anywhere in the database.
package advisory

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/retry"
)

// Key returns the lock key for a name. Different names have the same key only if their 64-bit hashes collide.
func Key(name string) int64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return int64(h.Sum64())
}

// Await takes a lock for the database session of a connection; closing the connection releases the lock. The parameter
// every is the average time between two attempts; the actual time varies randomly. If ctx ends between two attempts,
// Await returns the cause of ctx; if ctx ends during an attempt, Await returns the error of pgx.
func Await(ctx context.Context, conn *pgx.Conn, key int64, every time.Duration) error {
	for {
		var got bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&got); err != nil || got {
			return err
		}
		if !retry.Sleep(ctx, every*3/4+rand.N(every/2)) {
			return context.Cause(ctx)
		}
	}
}

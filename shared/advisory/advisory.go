// Package advisory takes advisory locks of PostgreSQL without waiting in a statement. A statement that waits holds a
// snapshot, and meanwhile no row version that is younger can be vacuumed in the whole database.
package advisory

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/retry"
)

// Key returns the key of the lock with a name. Two names have the same key only by a collision of 64-bit hashes.
func Key(name string) int64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return int64(h.Sum64())
}

// Await takes a lock for the session of a connection; closing the connection releases it. It tries about once per
// interval every, with random jitter. It returns the cause if ctx ends before.
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

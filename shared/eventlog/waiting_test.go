package eventlog

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// An operation waits for a lock. Meanwhile it must not keep an old snapshot, which would prevent VACUUM from removing
// row versions that become obsolete.
func TestWaiting_LetsTheDatabaseVacuum(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		purpose string // purpose of the lock that another session holds
		wait    func(context.Context, *Log) error
	}{
		"migration": {"migrate", func(ctx context.Context, l *Log) error {
			return migrate(ctx, l.o)
		}},
		"commit": {"append", func(ctx context.Context, l *Log) error {
			_, err := l.Commit(ctx, said("1", "c"))
			return err
		}},
		"new incarnation": {"append", func(ctx context.Context, l *Log) error {
			_, err := l.Reincarnate(ctx, 1)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := database(t)
			// The wait must not end during the test, however slow the machine is.
			waiter := instance(t, named(t, url, "waiter"), func(o *Options) { o.LockWait = time.Hour })
			during(t, waiter.Run)
			pgtest.RequireNoSnapshot(t, url, waiter.LockKey(c.purpose), c.purpose != "append", func(ctx context.Context) error {
				return c.wait(ctx, waiter)
			})
		})
	}
}

// Another session holds the log's lock for longer than LockWait, and a commit waits for the lock. The commit must fail
// with ErrUnavailable. Once the lock is free, commits must succeed.
func TestCommit_BoundsTheWaitForTheLock(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := instance(t, url, func(o *Options) { o.LockWait = 2 * lockWaitSlice })
	during(t, l.Run)
	holder, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer holder.Close(context.Background())
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", l.LockKey("append"))
	require.NoError(t, err)
	_, err = l.Commit(t.Context(), said("1", "c"))
	require.ErrorIs(t, err, retry.ErrUnavailable)
	require.ErrorContains(t, err, "lock timeout", "the wait for the lock ended the commit, not the context of the commit")
	require.NoError(t, holder.Close(t.Context()))
	for i := range 3 {
		commit(t, l, said("1", fmt.Sprint(i)))
	}
}

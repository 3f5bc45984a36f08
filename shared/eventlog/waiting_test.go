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

// A session that waits until another instance is done keeps no old snapshot: what the database deletes and updates meanwhile can
// be vacuumed.
func TestWaiting_LetsTheDatabaseVacuum(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		purpose string // of the lock that somebody else has
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
			// It waits for as long as the test takes, however slow the machine is.
			waiter := instance(t, named(t, url, "waiter"), func(o *Options) { o.LockWait = time.Hour })
			during(t, waiter.Run)
			pgtest.RequireNoSnapshot(t, url, waiter.LockKey(c.purpose), c.purpose != "append", func(ctx context.Context) error {
				return c.wait(ctx, waiter)
			})
		})
	}
}

// Commits that wait for the log's lock for longer than they may are told that the database is away, as ever.
func TestCommit_WaitsForTheLockOnlySoLong(t *testing.T) {
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
	require.ErrorContains(t, err, "lock timeout", "it is the lock that it waited for, and not the end of its own time")
	require.NoError(t, holder.Close(t.Context()))
	for i := range 3 {
		commit(t, l, said("1", fmt.Sprint(i)))
	}
}

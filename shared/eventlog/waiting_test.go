package eventlog

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest"
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
		"projection": {"projection counts", func(ctx context.Context, l *Log) error {
			return l.Follow(ctx, &counts{})
		}},
		"migration": {"migrate", func(ctx context.Context, l *Log) error {
			return migrate(ctx, l.o)
		}},
		"commit": {"append", func(ctx context.Context, l *Log) error {
			_, err := l.Commit(ctx, said("1", "c"))
			return err
		}},
		"rebuild": {"append", func(ctx context.Context, l *Log) error {
			_, err := l.Rebuild(ctx, Rebuild{Projections: []Projection{&counts{}}})
			return err
		}},
		"rebuild of timers": {"append", func(ctx context.Context, l *Log) error {
			_, err := l.RebuildTimers(ctx, nil)
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
			other := pool(t, url)
			// It waits for as long as the test takes, however slow the machine is.
			waiter := instance(t, named(t, url, "waiter"), counting)
			waiter.times.lock = time.Hour
			running := make(chan error, 1)
			ctx, stop := context.WithCancel(context.Background())
			go func() { running <- waiter.Run(ctx) }()
			holder, err := pgx.Connect(t.Context(), url)
			require.NoError(t, err)
			defer holder.Close(context.Background())
			_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", lockKey("chat", c.purpose))
			require.NoError(t, err)
			ended := make(chan error, 1)
			go func() { ended <- c.wait(ctx, waiter) }()
			t.Cleanup(func() {
				stop()
				<-running
			})
			meshtest.Eventually(t, "it waits for the lock", func() bool {
				var waits bool
				require.NoError(t, other.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
WHERE application_name = 'waiter' AND datname = current_database()
  AND (wait_event = 'advisory' OR $1 AND query LIKE '%advisory_lock(%'))`, c.purpose != "append").Scan(&waits))
				return waits
			})
			for range 3 {
				now := transactionID(t, other)
				meshtest.Eventually(t, "it keeps nothing that is older than now", func() bool {
					transactionID(t, other) // time goes by for the database
					xmin := horizon(t, other, "waiter")
					return xmin == 0 || xmin > now
				})
			}
			select {
			case err := <-ended:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			require.NoError(t, holder.Close(t.Context()))
			if name == "relay" || name == "projection" {
				stop() // it never ends by itself
			}
			assert.NoError(t, <-ended)
		})
	}
}

// Commits that wait for the log's lock for longer than they may are told that the database is away, as ever.
func TestCommit_WaitsForTheLockOnlySoLong(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := instance(t, url)
	l.times.lock = 2 * lockWaitSlice
	during(t, l.Run)
	holder, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer holder.Close(context.Background())
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", lockKey("chat", "append"))
	require.NoError(t, err)
	_, err = l.Commit(t.Context(), said("1", "c"))
	require.ErrorIs(t, err, retry.ErrUnavailable)
	require.ErrorContains(t, err, "lock timeout", "it is the lock that it waited for, and not the end of its own time")
	require.NoError(t, holder.Close(t.Context()))
	for i := range 3 {
		commit(t, l, said("1", fmt.Sprint(i)))
	}
}

package eventlog

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A commit does not need a connection of the pool, because queries may have exhausted the pool.
func TestCommit_NeedsNoConnectionOfThePool(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	for range l.o.Pool.Config().MaxConns {
		c, err := l.o.Pool.Acquire(t.Context())
		require.NoError(t, err)
		defer c.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i := range 3 {
		_, err := l.Commit(ctx, said("1", fmt.Sprint(i)))
		require.NoError(t, err)
	}
}

// Other instances are notified of commits with events, and of no other commits.
func TestCommit_NotifiesOfEventsOnly(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	listener, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer listener.Close(context.Background())
	_, err = listener.Exec(t.Context(), "LISTEN "+l.channel())
	require.NoError(t, err)

	none := said("1", "none")
	none.Commands[0].Events = nil
	commit(t, l, none)
	commit(t, l, said("1", "c1"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := listener.WaitForNotification(ctx)
	require.NoError(t, err)
	assert.Equal(t, "1", n.Payload)
}

// If the server closes the connection for commits while it is idle, the next commit still succeeds.
func TestCommit_ReconnectsAfterIdleness(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	commit(t, l, said("1", "c1"))
	killer := pool(t, url)
	_, err := killer.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	require.NoError(t, err)
	time.Sleep(1100 * time.Millisecond) // longer than an idle connection is used without a ping
	_, err = l.Commit(t.Context(), said("1", "c2"))
	require.NoError(t, err)
}

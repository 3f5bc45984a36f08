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

// Queries use all connections of the pool. Commits must still succeed, because they have a connection of their own.
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

// An instance commits a command without events, and then one with an event. Other instances must be notified only of
// the second commit.
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

// PostgreSQL closes the connection for commits while no commit uses it. The next commit must succeed.
func TestCommit_ReconnectsAfterIdleness(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	commit(t, l, said("1", "c1"))
	killer := pool(t, url)
	_, err := killer.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	require.NoError(t, err)
	time.Sleep(1100 * time.Millisecond) // after this time, a commit pings the connection before it uses it
	_, err = l.Commit(t.Context(), said("1", "c2"))
	require.NoError(t, err)
}

package eventlog

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// The caller of HoldLock continues to use the connection. After HoldLock, the settings of the connection must be as
// before, whether HoldLock could take the lock or not.
func TestHoldLock_RestoresTheSettingsOfTheConnection(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, impatient := instance(t, url), instance(t, url, func(o *Options) { o.LockWait = time.Millisecond })
	conns := make([]*pgx.Conn, 2)
	for n := range conns {
		conn, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		conns[n] = conn
	}
	settings := func(conn *pgx.Conn) (all string) {
		t.Helper()
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT current_setting('lock_timeout') || ' ' ||
  current_setting('transaction_timeout') || ' ' || current_setting('idle_session_timeout')`).Scan(&all))
		return all
	}
	before := settings(conns[0])
	_, err := l.HoldLock(t.Context(), conns[0], func(context.Context) error {
		require.NotEqual(t, before, settings(conns[0]))
		_, err := impatient.HoldLock(t.Context(), conns[1], func(context.Context) error { return nil })
		require.Error(t, err, "the lock is held already")
		return nil
	})
	require.NoError(t, err)
	for _, conn := range conns {
		require.Equal(t, before, settings(conn))
	}
}

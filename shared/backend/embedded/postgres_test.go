package embedded_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

// quick gives up what a test's data does not need.
var quick = map[string]string{"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}

func postgresOptions(t *testing.T) embedded.PostgresOptions {
	return embedded.PostgresOptions{
		Dir: t.TempDir(), User: "anna", Password: "it's a 'secret'/?", Database: "school", Settings: quick,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func startPostgres(t *testing.T, o embedded.PostgresOptions) *embedded.Postgres {
	t.Helper()
	p, err := embedded.StartPostgres(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Stop()) })
	return p
}

func exec(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

func value(t *testing.T, url, sql string) (text string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&text))
	require.NoError(t, conn.Close(t.Context()))
	return text
}

func TestPostgres_KeepsItsDataOverARestart(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	p := startPostgres(t, o)
	exec(t, p.URL(), "CREATE TABLE kept AS SELECT 'still here' AS said")
	require.Equal(t, "300", value(t, p.URL(), "SHOW max_connections"))
	require.Equal(t, "127.0.0.1", value(t, p.URL(), "SHOW listen_addresses"))
	require.Equal(t, "off", value(t, p.URL(), "SHOW fsync"))
	require.NoError(t, p.Stop())
	require.NoError(t, p.Stop(), "stopping again is no mistake")

	p = startPostgres(t, o)
	require.Equal(t, "still here", value(t, p.URL(), "SELECT said FROM kept"))
}

var _ = context.Background
var _ = net.Dial
var _ = os.Getpid
var _ = filepath.Join
var _ = strconv.Itoa
var _ = time.Now

// Package pgtest starts an embedded PostgreSQL server for the tests of a package, and observes its connections.
package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// server is the PostgreSQL server that all tests of the package share.
var server struct {
	sync.Once
	dir string
	pg  *embedded.Postgres
	err error
}

func startServer() error {
	server.Do(func() {
		if server.dir, server.err = os.MkdirTemp("", "eventlog-test-"); server.err != nil {
			return
		}
		// The server may run under another uid, which must be able to enter the folder.
		if server.err = os.Chmod(server.dir, 0o755); server.err == nil {
			server.pg, server.err = embedded.StartPostgres(context.Background(), embedded.PostgresOptions{Dir: server.dir})
		}
	})
	return server.err
}

// Main runs the tests of a package and stops the server. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if server.pg != nil {
		_ = server.pg.Stop()
	}
	_ = os.RemoveAll(server.dir)
	os.Exit(code)
}

var databases atomic.Int64

// Database creates an empty database and returns its URL.
func Database(t testing.TB) string {
	t.Helper()
	if err := startServer(); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	name := fmt.Sprintf("log_%d", databases.Add(1))
	if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name+""); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(server.pg.URL(), "/edu_matrix_db", "/"+name, 1)
}

// OwnServer starts a server for one test and returns its URL. On this server, no transaction of another test keeps old
// row versions.
func OwnServer(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "eventlog-test-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755)) // for a server under another uid
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { _ = pg.Stop() })
	return pg.URL()
}

// Pool opens a pool of connections that is closed when the test ends.
func Pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// During calls the function run with a context that ends with the test. The test fails if the function returns an
// error.
func During(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Named adds a name to the URL of a database. For connections that are opened with the returned URL, pg_stat_activity
// shows the name.
func Named(t testing.TB, database, name string) string {
	t.Helper()
	u, err := url.Parse(database)
	require.NoError(t, err)
	q := u.Query()
	q.Set("application_name", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// Horizon returns the id of the oldest transaction whose row versions cannot be vacuumed because of the connections
// with the given name (see Named). The result 0 means that these connections do not hold up a vacuum.
func Horizon(t testing.TB, p *pgxpool.Pool, name string) (xmin int64) {
	t.Helper()
	require.NoError(t, p.QueryRow(t.Context(), `SELECT coalesce(min(least(backend_xmin::text::bigint,
  backend_xid::text::bigint)), 0) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`,
		name).Scan(&xmin))
	return xmin
}

// TransactionID returns the id of a new transaction.
func TransactionID(t testing.TB, p *pgxpool.Pool) (xid int64) {
	t.Helper()
	require.NoError(t, p.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text::bigint").Scan(&xid))
	return xid
}

// RequireNoSnapshot asserts that an operation which waits for an advisory lock keeps no old snapshot, so that the
// database can be vacuumed meanwhile. It also asserts that the operation succeeds once the lock is released. The
// operation must use connections with the name "waiter". If the parameter polls is true, the operation polls for the
// lock; otherwise it waits in the server's queue.
func RequireNoSnapshot(t *testing.T, url string, key int64, polls bool, operation func(context.Context) error) {
	t.Helper()
	other := Pool(t, url)
	holder, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer holder.Close(context.Background())
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", key)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- operation(ctx) }()
	meshtest.Eventually(t, "the operation waits for the lock", func() bool {
		var waits bool
		require.NoError(t, other.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
WHERE application_name = 'waiter' AND datname = current_database()
  AND (wait_event = 'advisory' OR $1 AND query LIKE '%advisory_lock(%'))`, polls).Scan(&waits))
		return waits
	})
	for range 3 {
		now := TransactionID(t, other)
		meshtest.Eventually(t, "the operation keeps no snapshot that is older than now", func() bool {
			TransactionID(t, other) // advances the horizon of the database
			xmin := Horizon(t, other, "waiter")
			return xmin == 0 || xmin > now
		})
	}
	select {
	case err := <-ended:
		t.Fatalf("the operation did not wait: %v", err)
	default:
	}
	require.NoError(t, holder.Close(t.Context()))
	require.NoError(t, <-ended)
}

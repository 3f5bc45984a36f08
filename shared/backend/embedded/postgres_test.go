package embedded_test

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

// quick turns off settings that protect only against a crash of the machine.
var quick = map[string]string{"fsync": "off", "full_page_writes": "off"}

// postgresOptions returns options with a data folder inside a temporary folder of the test, which only the account that
// runs the test may enter.
func postgresOptions(t *testing.T) embedded.PostgresOptions {
	return embedded.PostgresOptions{
		Dir: filepath.Join(t.TempDir(), "postgres"), User: "anna", Password: "it's a 'secret'/?", Database: "school",
		Settings: quick, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func startPostgres(t *testing.T, o embedded.PostgresOptions) *embedded.Postgres {
	t.Helper()
	p, err := embedded.StartPostgres(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Stop()) })
	return p
}

func execute(t *testing.T, url, sql string) {
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

// The environment contains variables of libpq that are meant for another server. They must neither prevent the start of
// the embedded server nor affect connections to it.
func TestPostgres_IgnoresLibpqVariables(t *testing.T) {
	for name, value := range map[string]string{"PGSERVICE": "prod", "PGTZ": "Mars/Phobos", "PGTARGETSESSIONATTRS": "standby",
		"PGOPTIONS": "-c default_transaction_read_only=on", "PGSSLROOTCERT": "/nonexistent", "PGHOST": "elsewhere"} {
		t.Setenv(name, value)
	}
	p := startPostgres(t, postgresOptions(t))
	require.Equal(t, "UTC off", value(t, p.URL(),
		"SELECT current_setting('TimeZone') || ' ' || current_setting('default_transaction_read_only')"))
}

func TestPostgres_KeepsItsDataOverARestart(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	p := startPostgres(t, o)
	execute(t, p.URL(), "CREATE TABLE kept AS SELECT 'still here' AS said")
	require.Equal(t, "300", value(t, p.URL(), "SHOW max_connections"))
	require.Equal(t, "127.0.0.1", value(t, p.URL(), "SHOW listen_addresses"))
	require.Empty(t, value(t, p.URL(), "SHOW unix_socket_directories"))
	require.Equal(t, "off", value(t, p.URL(), "SHOW fsync"))
	require.Equal(t, "UTF8", value(t, p.URL(), "SHOW server_encoding"))
	require.NoError(t, p.Stop())
	require.NoError(t, p.Stop(), "stopping again is not an error")

	p = startPostgres(t, o)
	require.Equal(t, "still here", value(t, p.URL(), "SELECT said FROM kept"))
	o.Password = "wrong"
	_, err := pgx.Connect(t.Context(), strings.Replace(p.URL(), "it%27s", "its", 1))
	require.ErrorContains(t, err, "password authentication failed")
}

// The size of PostgreSQL's cache and of its write-ahead log between two checkpoints depends on the option Cache, within
// bounds.
func TestPostgres_UsesTheConfiguredMemory(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cache int64
		want  string
	}{
		"the default":       {0, "128MB 1GB 15min"},
		"below the minimum": {1 << 20, "128MB 1GB 15min"},
		"512 MiB":           {512 << 20, "512MB 2GB 15min"},
		"above the maximum": {64 << 30, "2GB 4GB 15min"},
		"explicit settings": {-1, "192MB 1GB 15min"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := postgresOptions(t)
			o.Cache = test.cache
			if test.cache < 0 { // the case in which explicit settings take precedence over the option Cache
				o.Cache, o.Settings = 512<<20, maps.Clone(quick)
				o.Settings["shared_buffers"], o.Settings["max_wal_size"] = "192MB", "1GB"
			}
			p := startPostgres(t, o)
			require.Equal(t, test.want, value(t, p.URL(), "SELECT current_setting('shared_buffers') || ' ' || "+
				"current_setting('max_wal_size') || ' ' || current_setting('checkpoint_timeout')"))
			require.Equal(t, "off", value(t, p.URL(), "SHOW wal_compression"))
		})
	}
}

func TestPostgres_RunsInAFolderThatAllUsersMayEnter(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	require.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(o.Dir)), 0o755))
	require.NoError(t, startPostgres(t, o).Stop())
	p := startPostgres(t, o)
	require.Equal(t, "1", value(t, p.URL(), "SELECT '1'"))
}

func TestPostgres_AcceptsAnotherUserAndPassword(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	p := startPostgres(t, o)
	execute(t, p.URL(), "CREATE TABLE kept AS SELECT 'still here' AS said")
	require.NoError(t, p.Stop())

	o.Password = "another"
	p = startPostgres(t, o)
	require.Equal(t, "still here", value(t, p.URL(), "SELECT said FROM kept"))
	require.NoError(t, p.Stop())

	o.User = `be"ata`
	p = startPostgres(t, o)
	require.Equal(t, "still here", value(t, p.URL(), "SELECT said FROM kept"))
	require.Equal(t, `be"ata`, value(t, p.URL(), "SELECT current_user"))
}

func TestPostgres_KeepsItsDataWhenItsProcessIsKilled(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	process := startProcess(t, "postgres", o.Dir)
	url, server, _ := strings.Cut(process.line(t), " ")
	execute(t, url, "CREATE TABLE kept AS SELECT 'still here' AS said")

	process.kill(t)
	p := startPostgres(t, o)
	require.Equal(t, "still here", value(t, p.URL(), "SELECT said FROM kept"))
	require.NotEqual(t, server, strconv.Itoa(p.PID()), "a new server runs")
}

func TestPostgres_StopsTheServerThatAnEarlierStartHasLeft(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	left := startPostgres(t, o)
	execute(t, left.URL(), "CREATE TABLE kept AS SELECT 'still here' AS said")
	// The process that started the first server seems to have died, because its lock file is gone.
	require.NoError(t, os.Remove(filepath.Join(o.Dir, "lock")))

	p := startPostgres(t, o)
	<-left.Done()
	require.NotEqual(t, left.PID(), p.PID())
	require.Equal(t, "still here", value(t, p.URL(), "SELECT said FROM kept"))
}

func TestPostgres_IgnoresAProcessIDThatAnotherProcessHasNow(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	require.NoError(t, startPostgres(t, o).Stop())
	// After a crash and a restart of the machine, the process id in the file postmaster.pid can belong to any other
	// process. In this test, it belongs to the test's own process.
	stale := fmt.Sprintf("%d\n/nowhere\n1\n1\n\n127.0.0.1\n1 1\nready\n", os.Getpid())
	require.NoError(t, os.WriteFile(filepath.Join(o.Dir, "cluster", "postmaster.pid"), []byte(stale), 0o600))
	startPostgres(t, o)
}

func TestPostgres_RefusesASecondStartOnItsData(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	p := startPostgres(t, o)
	_, err := embedded.StartPostgres(t.Context(), o)
	require.ErrorContains(t, err, fmt.Sprintf("%s: it is in use by process %d", o.Dir, os.Getpid()))
	require.Equal(t, "1", value(t, p.URL(), "SELECT '1'"), "the first server still works")
}

func TestPostgres_RefusesAPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	o := postgresOptions(t)
	o.Port = l.Addr().(*net.TCPAddr).Port
	_, err = embedded.StartPostgres(t.Context(), o)
	require.ErrorContains(t, err, fmt.Sprintf("port %d of 127.0.0.1 is in use", o.Port))
}

func TestPostgres_StartsAnInterruptedCreationOver(t *testing.T) {
	t.Parallel()
	o := postgresOptions(t)
	half := filepath.Join(o.Dir, "cluster.new", "base")
	require.NoError(t, os.MkdirAll(half, 0o700))
	startPostgres(t, o)
	require.NoDirExists(t, half)
}

func TestPostgres_ReportsUnusablePrograms(t *testing.T) {
	t.Parallel()
	programs := t.TempDir()
	require.NoError(t, os.Chmod(programs, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(programs), 0o755))
	o := postgresOptions(t)
	o.Binaries = programs
	_, err := embedded.StartPostgres(t.Context(), o)
	require.ErrorContains(t, err, "EDUMATRIX_POSTGRES_BIN="+programs+": there is no program postgres in it")

	for _, name := range []string{"postgres", "initdb"} {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) 15.4 (Debian 15.4-1)'\n"
		require.NoError(t, os.WriteFile(filepath.Join(programs, name), []byte(script), 0o755))
	}
	_, err = embedded.StartPostgres(t.Context(), o)
	require.ErrorContains(t, err, "it is PostgreSQL 15.4, 17 or later is needed")
	require.NoDirExists(t, filepath.Join(o.Dir, "cluster"))
}

func signalTo(pid int, s os.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Signal(s)
}

func TestPostgres_ReportsThatItsServerHasEnded(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, postgresOptions(t))
	require.NoError(t, signalTo(p.PID(), os.Kill))
	<-p.Done()
	require.NoError(t, p.Stop())
}

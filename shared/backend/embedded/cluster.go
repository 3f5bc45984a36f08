package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// cluster is the data of one server, with the programs and the account that use it.
type cluster struct {
	options  PostgresOptions
	account  account
	binaries binaries
	dir      string

	// handle is the open data folder, if the account cannot enter a folder above it (such as root's home or a temporary
	// folder). A process can use an open folder regardless of the folders above it.
	handle *os.File
}

// openCluster determines the account and the programs for the data.
func openCluster(ctx context.Context, o PostgresOptions) (*cluster, error) {
	c := &cluster{options: o, dir: filepath.Join(o.Dir, "cluster")}
	var err error
	if c.account, err = chooseAccount(c.dir); err != nil {
		return nil, err
	}
	major := 0
	if text, err := os.ReadFile(filepath.Join(c.dir, "PG_VERSION")); err == nil {
		if major, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return nil, fmt.Errorf("PG_VERSION: %w", err)
		}
	}
	if hidden := c.account.inaccessibleFolder(o.Dir); hidden != "" && runtime.GOOS != "linux" {
		return nil, fmt.Errorf("%s cannot enter %s: choose another folder for the data", c.account, hidden)
	}
	if c.binaries, err = chooseBinaries(ctx, o, c.account, major); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *cluster) close() {
	if c.handle != nil {
		_ = c.handle.Close() // an error does not matter: only PostgreSQL's programs used the handle
	}
}

// accessiblePath returns a path under which the account can use the data folder dir. If the account cannot enter a
// folder above dir, the path is that of an open handle, which the method command passes to the program.
func (c *cluster) accessiblePath(dir string) (string, error) {
	if c.account.inaccessibleFolder(c.options.Dir) == "" {
		return dir, nil
	}
	if c.handle == nil {
		var err error
		if c.handle, err = os.Open(dir); err != nil {
			return "", err
		}
	}
	return "/proc/self/fd/3", nil // the first of ExtraFiles has the descriptor 3
}

// command prepares one of PostgreSQL's programs for the data in dir. The program gets only the necessary variables of
// this process's environment.
func (c *cluster) command(dir, name string, args ...string) (*exec.Cmd, error) {
	reached, err := c.accessiblePath(dir)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(c.binaries.program(name), args...)
	for _, name := range []string{
		"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR",
	} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C", "PGDATA="+reached)
	if runtime.GOOS != "windows" {
		cmd.Dir = "/" // the account may be unable to enter this process's working directory
	}
	if c.handle != nil {
		cmd.ExtraFiles = []*os.File{c.handle}
	}
	c.account.apply(cmd)
	return cmd, nil
}

// create creates the data if it is missing. The folder gets its final name only once it is complete, so the next start
// repeats an interrupted creation.
func (c *cluster) create(ctx context.Context) error {
	if _, err := os.Stat(c.dir); err == nil {
		return nil
	}
	defer slow(c.options.Log, "creating PostgreSQL's data folder", "dir", c.options.Dir)()
	fresh := c.dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if err := c.account.own(fresh); err != nil {
		return err
	}
	// Texts are UTF-8 and sort by code point on every system. Connections are refused until there is a password.
	args := []string{"--username=" + c.options.User, "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
		"--builtin-locale=C.UTF-8", "--auth=reject"}
	if c.options.Settings["fsync"] == "off" {
		args = append(args, "--no-sync")
	}
	initdb, err := c.command(fresh, "initdb", args...)
	if err != nil {
		return err
	}
	if out, err := run(ctx, initdb); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, lastLines(out))
	}
	const access = "host all all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(fresh, "pg_hba.conf"), []byte(access), 0o600); err != nil {
		return err
	}
	if err := c.setPasswordIn(ctx, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, c.dir)
}

// setPassword creates the configured user, as a superuser, if it is missing, and sets the user's password.
func (c *cluster) setPassword(ctx context.Context) error { return c.setPasswordIn(ctx, c.dir) }

func (c *cluster) setPasswordIn(ctx context.Context, dir string) error {
	text := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	role := pgx.Identifier{c.options.User}.Sanitize()
	// A server in single-user mode requires no password, reads one statement per line, and accepts no connections.
	single, err := c.command(dir, "postgres", "--single", "-c", "exit_on_error=true",
		"-c", "log_min_error_statement=panic", "template1")
	if err != nil {
		return err
	}
	single.Stdin = strings.NewReader(
		"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = " + text(c.options.User) + ") THEN " +
			"CREATE ROLE " + role + " LOGIN SUPERUSER; END IF; END $do$\n" +
			"ALTER ROLE " + role + " PASSWORD " + text(c.options.Password) + "\n")
	if out, err := run(ctx, single); err != nil {
		return fmt.Errorf("set the password of %s: %w: %s", c.options.User, err, lastLines(out))
	}
	return nil
}

// ensureDatabase creates the database if it is missing.
func (c *cluster) ensureDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		return conn.Close(ctx)
	}
	if code(err) != "3D000" { // invalid_catalog_name
		return fmt.Errorf("connect: %w", err)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	config.Database = "postgres"
	if conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{c.options.Database}.Sanitize())
	return errors.Join(err, conn.Close(ctx))
}

// wrongPassword reports whether an error has the SQLSTATE invalid_password or invalid_authorization_specification.
func wrongPassword(err error) bool { return slices.Contains([]string{"28P01", "28000"}, code(err)) }

func code(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

// serve starts the server and waits until it accepts connections.
func (c *cluster) serve(ctx context.Context, port int) (*child, error) {
	defer slow(c.options.Log, "PostgreSQL is starting; after a crash it recovers its last writes",
		"dir", c.options.Dir)()
	args := []string{}
	for name, value := range c.settings(port) {
		args = append(args, "-c", name+"="+value)
	}
	cmd, err := c.command(c.dir, "postgres", args...)
	if err != nil {
		return nil, err
	}
	log, begin, err := openServerLog(filepath.Join(c.options.Dir, "server.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the server has its own handle
	cmd.Stdout, cmd.Stderr = log, log
	server, err := startChild(cmd)
	if err != nil {
		return nil, err
	}
	if err := c.awaitReady(ctx, server); err != nil {
		output, _ := io.ReadAll(io.NewSectionReader(log, begin, 1<<20)) // the text only extends the error
		if strings.Contains(string(output), "could not bind") {
			err = fmt.Errorf("port %d of 127.0.0.1: %w", port, errPortInUse)
		}
		return nil, errors.Join(fmt.Errorf("%w: %s", err, lastLines(output)), server.stop(c))
	}
	return server, nil
}

func (c *cluster) settings(port int) map[string]string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(port),
		"unix_socket_directories": "",
		"max_connections":         strconv.Itoa(connections),
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"log_checkpoints":         "off",
	}
	maps.Copy(settings, sized(c.options.Cache))
	maps.Copy(settings, c.options.Settings)
	return settings
}

// awaitReady waits until the status file in the data folder contains the server's process id and the status "ready". A
// connection to the port would not be enough, because another server may listen there.
func (c *cluster) awaitReady(ctx context.Context, server *child) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-server.done:
			if stopped(ctx) {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the server ended at once (%w)", server.err)
		case <-tick.C:
			if pid, status := c.running(); pid == server.pid() && status == "ready" {
				return nil
			}
		}
	}
}

// running reads the status file of the data folder, postmaster.pid. It returns the process id and the status of the
// server that wrote the file; this server may have ended without removing the file. The result pid is 0 if the file is
// missing or does not begin with a process id.
func (c *cluster) running() (pid int, status string) {
	text, err := os.ReadFile(filepath.Join(c.dir, "postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(text), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return 0, ""
	}
	if len(lines) >= 8 {
		status = strings.TrimSpace(lines[7])
	}
	return pid, status
}

// stopOrphan stops a server that an earlier process has left behind. This process holds the lock, so no other process
// uses the server.
func (c *cluster) stopOrphan(ctx context.Context) error {
	pid, _ := c.running()
	if pid == 0 {
		return nil
	}
	if !isServerOf(pid, c.dir) {
		// The server has ended, and its process id may belong to another process. Delete the file, because a new server
		// might take that process for a running server and refuse to start.
		return os.Remove(filepath.Join(c.dir, "postmaster.pid"))
	}
	c.options.Log.Info("stopping the PostgreSQL that an earlier start has left", "pid", pid, "dir", c.options.Dir)
	if err := c.signal(pid, stopFast); err != nil {
		return fmt.Errorf("stop the server that an earlier start has left (process %d): %w", pid, err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	patience := time.After(20 * time.Second)
	for isServerOf(pid, c.dir) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-patience:
			if err := c.signal(pid, stopNow); err != nil {
				return fmt.Errorf("end the server that an earlier start has left (process %d): %w", pid, err)
			}
		case <-tick.C:
		}
	}
	return nil
}

// openServerLog opens the server's log for appending, and returns its size. It first empties a log of more than 8 MiB.
func openServerLog(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	begin := int64(0)
	if err == nil {
		if begin = info.Size(); begin > 8<<20 {
			begin, err = 0, f.Truncate(0)
		}
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, begin, nil
}

// lastLines returns the last four lines of a program's output that are not empty, joined to one line.
func lastLines(out []byte) string {
	var lines []string
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-4):], "; ")
}

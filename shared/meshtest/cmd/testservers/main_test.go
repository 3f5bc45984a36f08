//go:build integration

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// program builds the program testservers and returns its path.
func program(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "testservers")
	out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return file
}

// without returns the environment of this process without the variables MESHTEST_… and DATABASE_URL, so that
// testservers starts a PostgreSQL server.
func without(t *testing.T) (env []string) {
	t.Helper()
	for _, setting := range os.Environ() {
		name, _, _ := strings.Cut(setting, "=")
		if !strings.HasPrefix(name, "MESHTEST_") && name != "DATABASE_URL" {
			env = append(env, setting)
		}
	}
	return env
}

// postgres returns the process id of the PostgreSQL server that testservers has started. The parameter dir is the
// folder in which testservers creates its temporary files.
func postgres(t *testing.T, dir string) int {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "edumatrix-test-*", "*", "postmaster.pid"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	text, err := os.ReadFile(found[0])
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	require.NoError(t, err)
	return pid
}

func TestCommand_GetsTheServersAndItsStatusIsReturned(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(program(t), "-stores", "postgres", "--", "sh", "-c", `echo "url: $MESHTEST_POSTGRES_URL"; exit 3`)
	cmd.Env = without(t)
	out, err := cmd.Output()
	var failed *exec.ExitError
	require.True(t, errors.As(err, &failed), "%v", err)
	require.Equal(t, 3, failed.ExitCode())
	require.Contains(t, string(out), "integration tests run against PostgreSQL 1")
	require.Contains(t, string(out), "url: postgres://")
	require.NotContains(t, string(out), "passed")
}

// TestServers_EndWithTestservers ends the program testservers in three ways. The server that the program has started
// must end too.
func TestServers_EndWithTestservers(t *testing.T) {
	t.Parallel()
	file := program(t)
	for name, end := range map[string]struct {
		do   func(*exec.Cmd, io.Closer) error
		dies bool // testservers is killed, so it cannot delete the servers' data
	}{
		"its input ends": {do: func(_ *exec.Cmd, in io.Closer) error { return in.Close() }},
		"SIGTERM":        {do: func(c *exec.Cmd, _ io.Closer) error { return c.Process.Signal(syscall.SIGTERM) }},
		"SIGKILL":        {do: func(c *exec.Cmd, _ io.Closer) error { return c.Process.Kill() }, dies: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "edumatrix-testservers-")
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			require.NoError(t, os.Chmod(dir, 0o755))
			cmd := exec.Command(file, "-hold", "-stores", "postgres")
			cmd.Env = append(without(t), "TMPDIR="+dir)
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			said, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			first := make([]byte, 300)
			n, err := said.Read(first)
			require.NoError(t, err)
			require.True(t, bytes.HasPrefix(first[:n], []byte("MESHTEST_POSTGRES_URL=postgres://")), string(first[:n]))
			server := postgres(t, dir)
			require.NoError(t, syscall.Kill(server, 0))

			require.NoError(t, end.do(cmd, in))
			ended := cmd.Wait()
			require.Equal(t, end.dies, ended != nil, "%v", ended)
			require.Eventually(t, func() bool { return errors.Is(syscall.Kill(server, 0), syscall.ESRCH) },
				20*time.Second, 20*time.Millisecond)
			if !end.dies {
				left, err := os.ReadDir(dir)
				require.NoError(t, err)
				require.Empty(t, left)
			}
		})
	}
}

//go:build integration

package edumatrix

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// processOfUp starts `edumatrix up` as a separate program, with embedded stores and a new data directory.
func processOfUp(t *testing.T, programs meshrun.Binaries, env ...string) (up *meshrun.Process, dir, gateway string) {
	t.Helper()
	dir = t.TempDir()
	port := meshtest.FreePort(t)
	env = append(env, "DATA_DIR="+dir, fmt.Sprintf("PORT=%d", port))
	for _, owner := range []string{"PRESENCE", "CHAT", "FEED", "NOTIFICATION"} {
		env = append(env, fmt.Sprintf("%s_URL=http://127.0.0.1:%d", owner, meshtest.FreePort(t)))
	}
	up = programs.Process("edumatrix", []string{"up"}, env)
	up.Start(t)
	t.Cleanup(func() {
		if up.Running() {
			up.Kill()
		}
	})
	return up, dir, fmt.Sprintf("http://127.0.0.1:%d", port)
}

func awaitPrinted(t *testing.T, p *meshrun.Process, text string) {
	t.Helper()
	meshtest.Eventually(t, p.Name+" prints "+text, func() bool {
		require.True(t, p.Running(), "the program ended:\n%s", p.Tail())
		return strings.Contains(p.Output(), text)
	})
}

// requireOrderlyEnd waits until the program ends. The program must have printed that it is stopping, and no error.
func requireOrderlyEnd(t *testing.T, p *meshrun.Process, signal string) {
	t.Helper()
	require.Zero(t, p.Wait(t), "%s", p.Tail())
	require.Contains(t, p.Output(), "stopping; a second signal stops at once")
	require.Contains(t, p.Output(), "signal="+signal)
	require.NotContains(t, p.Output(), "edumatrix up:")
	require.NotContains(t, p.Output(), "level=ERROR")
}

// descendants returns the descendants of a process, nearest first.
func descendants(t *testing.T, of int) (all []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	children := map[int][]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the process has ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		after := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		parent, err := strconv.Atoi(after[1])
		require.NoError(t, err)
		children[parent] = append(children[parent], pid)
	}
	for next := []int{of}; len(next) > 0; next = next[1:] {
		all = append(all, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return all
}

// signalAll sends SIGTERM to a program and to all its descendants, as systemd does. The program itself gets the signal
// last.
func signalAll(t *testing.T, p *meshrun.Process) {
	t.Helper()
	for _, pid := range descendants(t, p.PID()) {
		_ = syscall.Kill(pid, syscall.SIGTERM) // an error means that the process has ended
	}
	p.Signal(syscall.SIGTERM)
}

func TestUp_StopsInOrderOnSignals(t *testing.T) {
	t.Parallel()
	programs, err := meshrun.Build([]string{"edumatrix"})
	require.NoError(t, err)
	t.Cleanup(programs.Remove)
	makesData := func(t *testing.T, p *meshrun.Process, dir string) {
		meshtest.Eventually(t, "PostgreSQL's data directory is created", func() bool {
			require.True(t, p.Running(), "the program ended:\n%s", p.Tail())
			_, err := os.Stat(filepath.Join(dir, "postgres", "cluster.new", "PG_VERSION"))
			return err == nil
		})
	}

	t.Run("SIGHUP, with PostgreSQL variables of another server", func(t *testing.T) {
		t.Parallel()
		p, _, gateway := processOfUp(t, programs, "PGSERVICE=prod", "PGTZ=Mars/Phobos", "PGTARGETSESSIONATTRS=standby",
			"PGOPTIONS=-c default_transaction_read_only=on", "PGSSLROOTCERT=/nonexistent", "PGHOST=elsewhere")
		awaitPrinted(t, p, "is ready after")
		for _, path := range []string{"/health", "/readyz"} {
			r, err := http.Get(gateway + path)
			require.NoError(t, err)
			require.NoError(t, r.Body.Close())
			require.Equal(t, http.StatusOK, r.StatusCode, path)
		}
		p.Signal(syscall.SIGHUP)
		requireOrderlyEnd(t, p, "hangup")
	})
	t.Run("SIGTERM to PostgreSQL and to the program at once", func(t *testing.T) {
		t.Parallel()
		p, _, _ := processOfUp(t, programs)
		awaitPrinted(t, p, "is ready after")
		signalAll(t, p)
		requireOrderlyEnd(t, p, "terminated")
	})
	t.Run("SIGTERM during the first start", func(t *testing.T) {
		t.Parallel()
		p, dir, _ := processOfUp(t, programs)
		makesData(t, p, dir)
		p.Signal(syscall.SIGTERM)
		requireOrderlyEnd(t, p, "terminated")
	})
	t.Run("SIGTERM to all processes during the first start", func(t *testing.T) {
		t.Parallel()
		p, dir, _ := processOfUp(t, programs)
		makesData(t, p, dir)
		signalAll(t, p)
		requireOrderlyEnd(t, p, "terminated")
	})
}

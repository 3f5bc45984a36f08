package server

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRemoveStale_DeletesFoldersOfEndedProcesses is not parallel, because it changes the environment.
func TestRemoveStale_DeletesFoldersOfEndedProcesses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ended := exec.Command("true")
	require.NoError(t, ended.Run())
	left := func(pid int, age time.Duration) string {
		name := filepath.Join(dir, fmt.Sprintf("%s%d-kafka-1", dirPrefix, pid))
		require.NoError(t, os.MkdirAll(filepath.Join(name, "data"), 0o755))
		require.NoError(t, os.Chtimes(name, time.Time{}, time.Now().Add(-age)))
		return name
	}
	mine, err := NewDir("redis")
	require.NoError(t, err)
	require.NoError(t, os.Chtimes(mine, time.Time{}, time.Now().Add(-2*time.Hour)))

	young := left(ended.Process.Pid, time.Minute)
	require.NoError(t, removeStale())
	require.DirExists(t, young)
	old := left(ended.Process.Pid, 2*time.Hour)
	require.NoError(t, removeStale())
	require.NoDirExists(t, old)
	require.DirExists(t, mine)
}

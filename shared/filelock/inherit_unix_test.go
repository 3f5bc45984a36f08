//go:build unix

package filelock

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A child process has a copy of the locked file's descriptor. Every child process has such a copy between fork and
// exec; the child in this test keeps its copy. Release must release the lock nevertheless.
func TestRelease_ReleasesALockThatAChildHasInherited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	l, err := Try(path)
	require.NoError(t, err)
	child := exec.Command("cat") // runs until its input ends
	child.ExtraFiles = append(child.ExtraFiles, l.file)
	input, err := child.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	t.Cleanup(func() { require.NoError(t, input.Close()); require.NoError(t, child.Wait()) })
	l.Release()
	require.False(t, Held(path))
	again, err := Try(path)
	require.NoError(t, err)
	again.Release()
}

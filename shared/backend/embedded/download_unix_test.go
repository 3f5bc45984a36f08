//go:build !windows

package embedded

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The test may run as root. In that case the account of PostgreSQL, instead of root, must download the archive.
func TestArchive_IsDownloadedByTheAccountOfPostgreSQL(t *testing.T) {
	t.Parallel()
	source, _, fetched := publish(t, goodArchive)
	who, err := chooseAccount(filepath.Join(t.TempDir(), "none yet"))
	require.NoError(t, err)
	uid := os.Geteuid()
	if who.other {
		require.Zero(t, uid)
		uid = int(who.uid)
	}
	dir := openDir(t)
	require.NoError(t, who.download(t.Context(), dir, source))
	require.EqualValues(t, 1, fetched.Load())
	found, err := filepath.Glob(filepath.Join(dir, "*.txz"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, uid, ownerOf(t, found[0]))
	require.Equal(t, os.Geteuid(), ownerOf(t, dir), "other accounts could still change the archive")

	closed := httptest.NewServer(nil)
	closed.Close()
	require.ErrorContains(t, who.download(t.Context(), openDir(t), closed.URL), "unable to connect")
}

// openDir creates a folder directly in the machine's temporary folder, which all accounts may enter. The folders of
// t.TempDir are inside a folder that only the test's account may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "edumatrix-download-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func ownerOf(t *testing.T, path string) int {
	t.Helper()
	var stat syscall.Stat_t
	require.NoError(t, syscall.Stat(path, &stat))
	return int(stat.Uid)
}

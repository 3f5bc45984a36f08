package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const dirPrefix = "edumatrix-test-"

// NewDir creates a folder for a server's data. Other accounts can enter the folder, because PostgreSQL does not run as
// root. The folder's name contains the id of this process.
func NewDir(name string) (string, error) {
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-%s-", dirPrefix, os.Getpid(), name))
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// staleAfter is the age from which on removeStale deletes folders. A more recent folder may belong to a process in
// another container, whose process id is not visible here.
const staleAfter = time.Hour

// removeStale deletes the folders of processes that ended without deleting them, for example because of a panic or a
// timeout of go test.
func removeStale() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(number)
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < staleAfter {
			continue
		}
		// ErrPermission means that the folder is another user's, so it stays.
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("delete the folders of earlier test runs: %w", err)
		}
	}
	return nil
}

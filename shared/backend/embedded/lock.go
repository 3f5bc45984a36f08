package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/edumatrix/interlinked/shared/filelock"
)

// lockFile takes the lock of a file. If the lock is held already, the error contains the id of the process that holds
// it.
func lockFile(path string) (*filelock.Lock, error) {
	lock, err := filelock.Try(path)
	if errors.Is(err, filelock.ErrHeld) {
		holder, _ := os.ReadFile(holderFile(path)) // the text only extends the error
		return nil, fmt.Errorf("%w by process %s: stop that first, or choose another folder", filelock.ErrHeld,
			strings.TrimSpace(string(holder)))
	}
	return noteHolder(lock, err, path)
}

// awaitLock takes the lock of a file. If the lock is held already, awaitLock waits until the holder releases it or ctx
// ends.
func awaitLock(ctx context.Context, path string) (*filelock.Lock, error) {
	lock, err := filelock.Await(ctx, path)
	return noteHolder(lock, err, path)
}

// noteHolder writes the id of this process to the holder file, unless taking the lock failed with err.
func noteHolder(lock *filelock.Lock, err error, path string) (*filelock.Lock, error) {
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(holderFile(path), fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		lock.Release()
		return nil, err
	}
	return lock, nil
}

// holderFile returns the path of the file that contains the process id of a lock's holder. (On some systems, the locked
// file itself cannot be read.)
func holderFile(lock string) string { return filepath.Join(filepath.Dir(lock), "holder") }

package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// fileLock is held by one process at a time, and let go by the system when that process ends, however it does.
type fileLock struct{ file *os.File }

var errLocked = errors.New("it is in use")

// lockFile takes the lock, or says who has it.
func lockFile(path string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	taken, err := tryLock(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	if !taken {
		holder, _ := os.ReadFile(holderFile(path)) // it only adds to the error
		return nil, errors.Join(fmt.Errorf("%w by process %s: stop that first, or choose another folder",
			errLocked, strings.TrimSpace(string(holder))), f.Close())
	}
	if err := os.WriteFile(holderFile(path), fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileLock{f}, nil
}

// holderFile says which process holds a lock. (The locked file itself cannot be read on every system.)
func holderFile(lock string) string { return filepath.Join(filepath.Dir(lock), "holder") }

// awaitLock takes the lock when its holder lets it go.
func awaitLock(ctx context.Context, path string) (*fileLock, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		lock, err := lockFile(path)
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (l *fileLock) release() { _ = l.file.Close() } // nothing was written to it

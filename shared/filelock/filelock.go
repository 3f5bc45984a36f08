// Package filelock lets one process at a time use a folder. It locks a file; the operating system releases the lock
// when the process ends, however it ends.
//
// The library github.com/gofrs/flock makes the same system calls, but would save no code: ErrHeld, and a Held that does
// not create the file, would still need a wrapper of about this package's size. Every module would also have one more
// dependency.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Lock is a lock that is held until Release is called or the process ends.
type Lock struct{ file *os.File }

// ErrHeld means that the lock is held already, by another process or by an earlier call in this process.
var ErrHeld = errors.New("it is in use")

// pollInterval is the interval between the attempts of Await.
const pollInterval = 20 * time.Millisecond

// Try takes the lock of a file, which it creates if missing. If the lock is held already, the error wraps ErrHeld.
func Try(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f, exclusive); errors.Is(err, ErrHeld) {
		return nil, errors.Join(err, f.Close())
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return &Lock{f}, nil
}

// Await is like Try, but if the lock is held already, it waits until the holder has released the lock. If ctx ends
// first, the error wraps ErrHeld and the cause of ctx.
func Await(ctx context.Context, path string) (*Lock, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		l, err := Try(path)
		if !errors.Is(err, ErrHeld) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrHeld, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Held reports whether a process holds the lock. To find out, it takes the lock for a moment, shared with other calls
// of Held; a process that tries to take the lock at that moment has to try again. If the file cannot be opened, Held
// returns false.
func Held(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer (&Lock{f}).Release()
	return lock(f, shared) != nil
}

// Release releases the lock. Closing the file would not be enough: a child process that another goroutine starts has a
// copy of the file descriptor between fork and exec, and that copy would keep the lock.
func (l *Lock) Release() {
	_ = unlock(l.file)
	_ = l.file.Close() // the file was not written to; closing it releases the lock if unlock has failed
}

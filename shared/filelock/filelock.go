// Package filelock has one process at a time work on a folder: a lock on a file, which the system lets go when the
// process ends, however it does.
//
// github.com/gofrs/flock makes the same two system calls, and has nothing in addition that is needed here: files are opened
// for writing, which is what it tries again for on NFS. ErrHeld, Held without making the file, and waiting with the cause
// of a context's end would stay in a wrapper of about this package's length, with one more dependency for each module.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Lock is held until Release.
type Lock struct{ file *os.File }

// ErrHeld says that another process has the lock.
var ErrHeld = errors.New("it is in use")

// lookEvery is how often Await looks.
const lookEvery = 20 * time.Millisecond

// Try takes the lock of a file, which it makes where it is missing. When another process has it, that is ErrHeld.
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

// Await takes the lock when its holder lets it go. When ctx ends before, the error is ErrHeld as well.
func Await(ctx context.Context, path string) (*Lock, error) {
	tick := time.NewTicker(lookEvery)
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

// Held reports whether a process has the lock. To look, it takes it for a moment, together with others who look: who
// tries to take it meanwhile has to try again.
func Held(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // which gives the lock back, if it was got
	return lock(f, shared) != nil
}

// Release gives the lock back.
func (l *Lock) Release() { _ = l.file.Close() } // nothing was written to it

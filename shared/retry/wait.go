package retry

import (
	"context"
	"time"
)

// Sleep waits for the duration d. It reports whether the time has passed; false means that ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Await returns when the channel signal is closed or has a value, when the duration patience has passed, or when ctx
// ends.
func Await[T any](ctx context.Context, signal <-chan T, patience time.Duration) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-signal:
	case <-t.C:
	}
}

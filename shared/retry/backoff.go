// Package retry marks the errors that make another attempt worthwhile or useless, computes how long to wait before the
// next attempt, and waits. It contains no loops, because each caller does something else between two attempts.
package retry

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"
)

// Backoff computes the delays between consecutive attempts. The first delay is First, and each later one is twice the
// previous one, up to Max, with a random jitter of plus or minus a quarter. A Backoff is not safe for concurrent use.
// The zero value is ready.
type Backoff struct {
	First time.Duration // 0: 100 ms
	Max   time.Duration // 0: 5 s
	// Failures is the number of delays since the last Reset.
	Failures int
}

// Next returns the delay before the next attempt.
func (b *Backoff) Next() time.Duration {
	b.Failures++
	return Delay(b.Failures, cmp.Or(b.First, 100*time.Millisecond), cmp.Or(b.Max, 5*time.Second))
}

// Wait waits for the next delay. It reports whether the delay passed before ctx ended.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Reset makes the next delay the first one again. Call it after an attempt that succeeded.
func (b *Backoff) Reset() { b.Failures = 0 }

// Delay returns the delay after the nth failure in a row, counted from 1, as Backoff computes it. The parameters first
// and longest stand for the fields First and Max, without their defaults.
func Delay(n int, first, longest time.Duration) time.Duration {
	d := min(first<<max(0, min(n-1, 20)), longest)
	return d*3/4 + rand.N(d/2+1)
}

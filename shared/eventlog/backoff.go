package eventlog

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/edumatrix/interlinked/shared/sleep"
)

// backoff computes the delay before the next attempt: 100 ms at first, doubling up to 5 s, with random jitter.
type backoff struct{ tries int }

// wait waits for the next delay. It reports whether the delay passed before ctx ended.
func (b *backoff) wait(ctx context.Context) bool { return sleep.For(ctx, b.next()) }

// next returns the delay before the next attempt.
func (b *backoff) next() time.Duration {
	d := min(100*time.Millisecond<<min(b.tries, 6), 5*time.Second)
	b.tries++
	return d*3/4 + rand.N(d/2)
}

func (b *backoff) reset() { b.tries = 0 }

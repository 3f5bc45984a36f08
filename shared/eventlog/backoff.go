package eventlog

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/edumatrix/interlinked/shared/sleep"
)

// backoff is how long to wait before trying again: from 100 ms, doubling, up to 5 s, a little at random.
type backoff struct{ tries int }

// wait returns false when ctx ended.
func (b *backoff) wait(ctx context.Context) bool { return sleep.For(ctx, b.next()) }

// next returns how long to wait before the next attempt.
func (b *backoff) next() time.Duration {
	d := min(100*time.Millisecond<<min(b.tries, 6), 5*time.Second)
	b.tries++
	return d*3/4 + rand.N(d/2)
}

func (b *backoff) reset() { b.tries = 0 }

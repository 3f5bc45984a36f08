package bus

import (
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	firstPause = 100 * time.Millisecond
	// A pause grows to this many times the first one: from 100 ms to 5 s.
	pauseGrowth = 50
)

// backoff is how long to wait before trying again: doubling, bounded, a little at random.
type backoff struct {
	first time.Duration
	tries int
}

func (b *backoff) next() time.Duration {
	b.tries++
	return pause(b.first, b.tries)
}

// pause is the wait before the nth repeat, the first one being 1.
func pause(first time.Duration, n int) time.Duration {
	d := min(first<<min(n-1, 10), pauseGrowth*first)
	return d*3/4 + rand.N(d/2+1)
}

// sleep waits, and says false when one of the channels closed meanwhile.
func sleep(d time.Duration, over, orOver <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-over:
	case <-orOver:
	}
	return false
}

// grumble logs troubles that come again and again, each of them once in a while. It is not safe for concurrent use.
type grumble struct {
	log  *slog.Logger
	said map[string]time.Time
}

func newGrumble(log *slog.Logger) *grumble { return &grumble{log: log, said: map[string]time.Time{}} }

func (g *grumble) warn(text string, err error) {
	const again = 30 * time.Second
	what := text + err.Error()
	if time.Since(g.said[what]) < again {
		return
	}
	if len(g.said) > 100 {
		clear(g.said)
	}
	g.said[what] = time.Now()
	g.log.Warn(text, "error", err)
}

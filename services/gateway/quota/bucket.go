package quota

import "time"

// Bucket is a token bucket. It is not safe for concurrent use.
type Bucket struct {
	rate, burst float64
	level       float64 // negative if tokens were taken in advance
	at          time.Time
}

// NewBucket returns a full bucket. The rate is in tokens per second; burst is the capacity.
func NewBucket(rate, burst int) Bucket {
	return Bucket{rate: float64(rate), burst: float64(burst), level: float64(burst)}
}

func (b *Bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.level = min(b.burst, b.level+b.rate*max(0, now.Sub(b.at).Seconds()))
	}
	b.at = now
}

// IsFull reports whether the bucket has all its tokens.
func (b *Bucket) IsFull(now time.Time) bool {
	b.fill(now)
	return b.level >= b.burst
}

// Take takes n tokens. If there are fewer, it takes none and returns false.
func (b *Bucket) Take(now time.Time, n int) bool {
	if b.fill(now); b.level < float64(n) {
		return false
	}
	b.level -= float64(n)
	return true
}

// Reserve takes n tokens, if necessary in advance, and returns how long to wait until they are available. If the wait
// would be longer than the duration max, Reserve takes no tokens, and returns max and false.
func (b *Bucket) Reserve(now time.Time, n int, max time.Duration) (wait time.Duration, ok bool) {
	b.fill(now)
	if after := b.level - float64(n); after < 0 {
		wait = time.Duration(-after / b.rate * float64(time.Second))
	}
	if wait > max {
		return max, false
	}
	b.level -= float64(n)
	return wait, true
}

package rooms

import (
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/quota"
)

// pace limits the rate of missed events that one user is given, because reading and encoding them takes processor time
// that others need. A user gets maxMissed events at once and missedRate a second on average, over all connections. A
// user who has had more waits before the next resume, for at most maxPace. The bound lets twenty devices with 1,000
// missed events each resume at once.
type pace struct {
	mu    sync.Mutex
	users map[string]*quota.Bucket
	swept time.Time
}

const (
	missedRate, maxMissed = 4000, 20_000
	maxPace               = 10 * time.Second
)

// gave notes that a user was given so many missed events.
func (p *pace) gave(user string, events int, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == nil {
		p.users, p.swept = map[string]*quota.Bucket{}, now
	}
	if now.Sub(p.swept) > time.Minute {
		p.swept = now
		for user, b := range p.users {
			if b.Take(now, maxMissed) { // full again: as if it were new
				delete(p.users, user)
			}
		}
	}
	b := p.users[user]
	if b == nil {
		made := quota.NewBucket(missedRate, maxMissed)
		b = &made
		p.users[user] = b
	}
	b.Reserve(now, events, time.Hour)
}

// wait is how long the next return of a user has to wait.
func (p *pace) wait(user string, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.users[user]
	if b == nil {
		return 0
	}
	wait, _ := b.Reserve(now, 0, maxPace)
	return wait
}

package rooms

import (
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/quota"
)

// pace limits how fast the connections of one user are attached to one owner's log. Attaching a connection has a cost,
// because reading and encoding missed events, and joining and leaving rooms, take processor time that other users need.
// The unit of cost is one missed event. A user gets maxPaced units at once, and on average pacedRate units per second,
// over all connections.
// Once a user has used more than that, the user's next connection waits before it is attached, for at most maxPace.
//
// maxPaced lets ten devices of a user with 2,000 rooms resume at once after an outage in which each has missed 1,500
// events.
type pace struct {
	mu    sync.Mutex
	users map[string]*quota.Bucket
	swept time.Time
}

const (
	pacedRate, maxPaced = 4000, 20_000
	// roomsPerUnit is the number of rooms that cost as much as one missed event. The number was measured.
	roomsPerUnit = 4
	// maxPace is the longest wait. In that time, pacedRate allows a user to attach 64 connections, the maximum, with
	// 2,000 rooms and 2,000 missed events each.
	maxPace = 40 * time.Second
)

// charge counts the missed events and rooms of one connection of a user.
func (p *pace) charge(user string, events, rooms int, now time.Time) {
	cost := events + rooms/roomsPerUnit
	if cost == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == nil {
		p.users, p.swept = map[string]*quota.Bucket{}, now
	}
	if now.Sub(p.swept) > time.Minute {
		p.swept = now
		for user, b := range p.users {
			if b.Take(now, maxPaced) { // a full bucket is the same as a new one
				delete(p.users, user)
			}
		}
	}
	b := p.users[user]
	if b == nil {
		made := quota.NewBucket(pacedRate, maxPaced)
		b = &made
		p.users[user] = b
	}
	b.Reserve(now, cost, time.Hour)
}

// wait returns how long the next connection of a user has to wait, at most maxPace.
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

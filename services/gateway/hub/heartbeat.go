package hub

import (
	"context"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/frame"
)

const (
	// slots is the number of groups of connections. The hub handles one group after another during CoverEvery, so that
	// not all connections get their heartbeats at the same time.
	slots = 50
	// perHeartbeat is the maximum time between two heartbeats of a connection, in units of CoverEvery.
	perHeartbeat = 5
	// maxUncoveredBytes and maxUncoveredTime bound the missed events that are sent before the next resume token. Tokens
	// between missed events are needed because a client on a slow link may lose its connection before it has all missed
	// events. The client then resumes from the last token that it has read.
	maxUncoveredBytes = 256 << 10
	maxUncoveredTime  = 5 * time.Second
)

// HeartbeatEvery returns the maximum time between two heartbeats of a connection. A heartbeat may be dropped if the
// connection's queue is full.
func (h *Hub) HeartbeatEvery() time.Duration { return perHeartbeat * h.options.CoverEvery }

// Run sends heartbeats until the context ends.
func (h *Hub) Run(ctx context.Context) error {
	tick := time.NewTicker(max(h.options.CoverEvery/slots, time.Millisecond))
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
			h.beatSlot(n%slots, n/slots%perHeartbeat == perHeartbeat-1)
		case <-ctx.Done():
			return nil
		}
	}
}

// Beat queues heartbeats. If the parameter due is true, every connection that is not closing gets one. Otherwise a
// connection gets one only if its reply to connect was queued, its last resume token does not cover all queued events,
// and a newer token is available.
func (h *Hub) Beat(due bool) {
	for slot := range slots {
		h.beatSlot(slot, due)
	}
}

func (h *Hub) beatSlot(slot int, due bool) {
	h.mu.RLock()
	if len(h.slots[slot]) == 0 {
		h.mu.RUnlock()
		return
	}
	all := make([]*Conn, 0, len(h.slots[slot]))
	for c := range h.slots[slot] {
		all = append(all, c)
	}
	h.mu.RUnlock()
	shared := h.share(h.complete())
	for _, c := range all {
		c.mu.Lock()
		c.beat(shared, due)
		c.unlock()
	}
}

// beat does the same as Beat, for one connection. The caller holds the connection's lock.
func (c *Conn) beat(shared *sharedProgress, due bool) {
	if c.progress.awaited > 0 {
		if due && c.reason == nil {
			c.push(c.heartbeat(c.missedToken()))
		}
		return
	}
	if due || c.progress.hasUncovered() && c.progress.newer(shared) {
		c.cover(shared)
	}
}

// beatLast queues a heartbeat before the connection ends, if the reply to connect was queued and a resume token is
// available that is newer than the last one.
func (c *Conn) beatLast(shared *sharedProgress) {
	if c.progress.awaited == 0 && c.progress.newer(shared) {
		c.cover(shared)
	}
}

// cover queues a heartbeat with the newest resume token. All events up to the positions in the token were queued before
// the heartbeat. Most connections get a token of the progress in the parameter shared. A connection with a higher
// position in some log gets a token of its own progress.
func (c *Conn) cover(shared *sharedProgress) {
	if c.reason != nil {
		return
	}
	p := shared
	for log, s := range c.progress.logs {
		if shared.positions[log] < max(s.asOf, s.covered) {
			p = c.hub.share(c.progress.positions(shared))
			break
		}
	}
	c.progress.setCovered(p)
	c.push(c.heartbeat(p.token(c.User)))
}

// heartbeat returns an item with a heartbeat frame.
func (c *Conn) heartbeat(token string) item {
	return item{own: &queued{text: c.encode(frame.Heartbeat(token)), token: token, spare: true}}
}

// tookMissed records that a missed event with the given number of bytes was taken from the queue, and appends a
// heartbeat to the list frames if one is due.
func (c *Conn) tookMissed(it item, bytes int, frames [][]byte) [][]byte {
	p, now := &c.progress, time.Now()
	p.logs[it.missed-1].resumePoint.Position = it.event.Position
	if p.uncovered == 0 && p.uncoveredAt.IsZero() {
		p.uncoveredAt = now
	}
	if p.uncovered += bytes; p.uncovered < maxUncoveredBytes && now.Sub(p.uncoveredAt) < maxUncoveredTime {
		return frames
	}
	p.uncovered, p.uncoveredAt = 0, now
	p.written = c.missedToken()
	return append(frames, c.encode(frame.Heartbeat(p.written)))
}

// missedToken returns the resume token of a client that has not got the reply to connect yet. The token is empty if the
// client does not resume.
func (c *Conn) missedToken() string {
	p := Progress{}
	for log, owner := range c.hub.logs {
		if s := &c.progress.logs[log]; s.known {
			p[owner] = s.resumePoint
		}
	}
	if len(p) == 0 {
		return ""
	}
	return c.hub.ResumeToken(c.User, p)
}

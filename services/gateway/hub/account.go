package hub

import "sync/atomic"

// account counts what all connections of one user hold together, so that many connections do not multiply what one user
// may have waiting.
type account struct {
	held        atomic.Int64 // bytes that wait to be written, or are written at the moment
	connections atomic.Int64
}

// frameCost is what a frame costs beside its text while it waits, roughly, in bytes.
const frameCost = 64

// holds is how many bytes the connection holds.
func (c *Conn) holds() int {
	return c.queue.bytes + c.queue.missed + c.queue.others + c.queue.len()*frameCost + c.writing + c.expected
}

// settle counts what has changed.
func (c *Conn) settle() {
	if now := c.holds(); now != c.held {
		c.account.held.Add(int64(now - c.held))
		c.held = now
	}
	if now := c.queue.missed + c.expected; now != c.pending {
		c.hub.missed.Add(int64(now - c.pending))
		c.pending = now
	}
}

// mayHold reports whether the connection may hold so many bytes more: as long as the user's connections hold less than
// one user may, and otherwise up to an equal share of that. So connections that are not read cost one that is nothing.
func (c *Conn) mayHold(more int) bool {
	return c.affords(c.account.held.Load(), more)
}

func (c *Conn) affords(held int64, more int) bool {
	bound := int64(c.hub.options.Limits.UserBytes)
	return held+int64(more) <= bound || int64(c.holds()+more) <= bound/max(1, c.account.connections.Load())
}

// reserve is mayHold for what is queued at once: it counts the bytes before others are asked about.
func (c *Conn) reserve(more int) bool {
	more += frameCost
	held := c.account.held.Add(int64(more))
	if !c.affords(held-int64(more), more) {
		c.account.held.Add(int64(-more))
		return false
	}
	c.held += more
	return true
}

// expect counts missed events before they are queued. It returns false, and counts nothing, where the user, or all users,
// have too many of them waiting. Call expectNoMore with the same number once they are queued, or will not be.
func (c *Conn) expect(bytes int) bool {
	c.mu.Lock()
	defer c.unlock()
	if c.hub.missed.Add(int64(bytes)) > int64(c.hub.options.Missed) || !c.reserve(bytes) {
		c.hub.missed.Add(int64(-bytes))
		return false
	}
	c.expected += bytes
	c.pending += bytes
	return true
}

func (c *Conn) expectNoMore(bytes int) {
	c.mu.Lock()
	defer c.unlock()
	c.expected -= bytes
}

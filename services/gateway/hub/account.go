package hub

import "sync/atomic"

// account counts what all connections and requests of one user hold together, so that many connections do not multiply
// what one user may have waiting.
type account struct {
	held        atomic.Int64 // bytes that wait to be written, or are written at the moment
	connections atomic.Int64
	holders     int // connections, and answers that Hold counts; guarded by the hub
}

// open returns the account of a user, for one connection or answer; the caller has the hub's lock. Call shut when it ends.
func (h *Hub) open(user string) *account {
	a := h.accounts[user]
	if a == nil {
		a = &account{}
		h.accounts[user] = a
	}
	a.holders++
	return a
}

func (h *Hub) shut(user string) {
	a := h.accounts[user]
	if a.holders--; a.holders == 0 {
		delete(h.accounts, user)
	}
}

// Hold counts bytes of an answer that waits for a user outside of any connection, until release is called. It reports
// false, and counts nothing, where what waits for the user would be more than one user may have.
func (h *Hub) Hold(user string, bytes int) (release func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.open(user)
	if a.held.Add(int64(bytes)) > int64(h.options.Limits.UserBytes) {
		a.held.Add(int64(-bytes))
		h.shut(user)
		return nil, false
	}
	a.connections.Add(1) // it takes a share, as a connection does
	return func() {
		a.held.Add(int64(-bytes))
		a.connections.Add(-1)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.shut(user)
	}, true
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

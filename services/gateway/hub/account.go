package hub

import "sync/atomic"

// account counts the bytes that wait for all connections and requests of one user together, so that the bound of a user
// does not grow with the number of connections.
type account struct {
	held        atomic.Int64 // bytes that wait to be written or are being written
	connections atomic.Int64
	holders     int // connections, and answers that Reserve counts; guarded by the hub
}

// open returns the account of a user, for one connection or answer. The caller has the hub's lock, and calls shut at
// the end.
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

// Reserve counts bytes of an answer that waits for a user outside of any connection, until release is called. It
// returns false, and counts nothing, where more than Limits.UserBytes would wait for the user.
func (h *Hub) Reserve(user string, bytes int) (release func(), ok bool) {
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

// frameCost estimates the memory of a queued frame beside its text, in bytes.
const frameCost = 64

// held has the bytes of one connection that count for its user. It is guarded by the connection's lock.
type held struct {
	account  *account // of the user
	counted  int      // bytes that the account counts for the connection
	missed   int      // bytes of missed events that the hub counts for the connection
	writing  int      // bytes that the flush took last
	expected int      // bytes of missed events that are about to be queued
}

// holds returns how many bytes wait for the connection.
func (c *Conn) holds() int {
	return c.queue.bytes + c.queue.len()*frameCost + c.held.writing + c.held.expected
}

// settle brings the counts of the user and of the hub up to date.
func (c *Conn) settle() {
	if now := c.holds(); now != c.held.counted {
		c.held.account.held.Add(int64(now - c.held.counted))
		c.held.counted = now
	}
	if now := c.queue.missed + c.held.expected; now != c.held.missed {
		c.hub.missed.Add(int64(now - c.held.missed))
		c.held.missed = now
	}
}

// mayHold reports whether more bytes may wait for the connection: any number within Limits.UserBytes of all the user's
// connections, and beyond that up to an equal share. So connections that are not read cost nothing to one that is.
func (c *Conn) mayHold(more int) bool {
	return c.affords(c.held.account.held.Load(), more)
}

func (c *Conn) affords(held int64, more int) bool {
	bound := int64(c.hub.options.Limits.UserBytes)
	return held+int64(more) <= bound || int64(c.holds()+more) <= bound/max(1, c.held.account.connections.Load())
}

// reserve is mayHold for bytes that are queued right away. It counts them, so that concurrent calls see them.
func (c *Conn) reserve(more int) bool {
	more += frameCost
	held := c.held.account.held.Add(int64(more))
	if !c.affords(held-int64(more), more) {
		c.held.account.held.Add(int64(-more))
		return false
	}
	c.held.counted += more
	return true
}

// expect counts the bytes of missed events before they are queued. It returns false, and counts nothing, where the user
// or all users together have too many waiting. Call expectNoMore with the same number once they are queued or dropped.
func (c *Conn) expect(bytes int) bool {
	c.mu.Lock()
	defer c.unlock()
	if c.hub.missed.Add(int64(bytes)) > int64(c.hub.options.Missed) || !c.reserve(bytes) {
		c.hub.missed.Add(int64(-bytes))
		return false
	}
	c.held.expected += bytes
	c.held.missed += bytes
	return true
}

func (c *Conn) expectNoMore(bytes int) {
	c.mu.Lock()
	defer c.unlock()
	c.held.expected -= bytes
}

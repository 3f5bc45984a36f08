package hub

import "sync/atomic"

// account counts the bytes that wait to be written to one user, over all of the user's connections and HTTP requests.
// Bounds on single connections would not suffice, because a user can open many connections.
type account struct {
	held        atomic.Int64 // the sum of Conn.holds over the connections, plus the bytes that Reserve counts
	connections atomic.Int64 // the number of holders, readable without Hub.mu
	holders     int          // connections, and answers that Reserve counts; guarded by Hub.mu
}

// open returns the account of a user for a new connection or answer, which becomes a holder of the account. The caller
// holds h.mu, and calls shut when the holder ends.
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

// Reserve counts the bytes of an answer against Limits.UserBytes of its user, until the function release is called. It
// is for answers that are not sent over a connection of the hub, such as responses to HTTP requests. If the answer
// would raise the bytes that wait for the user above Limits.UserBytes, Reserve counts nothing and returns false.
func (h *Hub) Reserve(user string, bytes int) (release func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.open(user)
	if a.held.Add(int64(bytes)) > int64(h.options.Limits.UserBytes) {
		a.held.Add(int64(-bytes))
		h.shut(user)
		return nil, false
	}
	a.connections.Add(1) // the answer takes up one of the equal shares, like a connection
	return func() {
		a.held.Add(int64(-bytes))
		a.connections.Add(-1)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.shut(user)
	}, true
}

// frameCost is an estimate of the memory that a queued frame uses in addition to its text, in bytes.
const frameCost = 64

// held counts the bytes of one connection that belong to its user's account. It is guarded by the connection's lock.
type held struct {
	account  *account
	counted  int // bytes of the connection that are included in account.held
	missed   int // bytes of the connection that are included in Hub.missed
	writing  int // bytes that a flush (see Conn.Bind) has taken from the queue and may still be writing
	expected int // bytes of missed events that are about to be queued
}

// holds returns the number of bytes that wait for the connection, are about to be queued (held.expected) or are being
// written, with frameCost for each waiting frame.
func (c *Conn) holds() int {
	return c.queue.bytes + c.queue.len()*frameCost + c.held.writing + c.held.expected
}

// settle updates the counts in the user's account and in the hub.
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

// queueItem adds an item to the queue with queue.push. If push fails but has dropped other items, queueItem calls it a
// second time, because the user holds fewer bytes after the drop.
func (c *Conn) queueItem(it item) (dropped int, ok bool) {
	size := len(it.text())
	dropped, ok = c.queue.push(it, &c.hub.options.Limits, c.mayHold(size))
	if !ok && dropped > 0 {
		c.settle() // the user holds less now
		_, ok = c.queue.push(it, &c.hub.options.Limits, c.mayHold(size))
	}
	return dropped, ok
}

// mayHold reports whether the given number of further bytes may wait for the connection. They may if all connections
// and HTTP answers of the user together stay within Limits.UserBytes. Beyond that bound, each connection may hold an
// equal share of the bound. So a connection that is read keeps its share, however many bytes wait for other connections
// of the user.
func (c *Conn) mayHold(more int) bool {
	return c.affords(c.held.account.held.Load(), more)
}

func (c *Conn) affords(held int64, more int) bool {
	bound := int64(c.hub.options.Limits.UserBytes)
	return held+int64(more) <= bound || int64(c.holds()+more) <= bound/max(1, c.held.account.connections.Load())
}

// reserve is like mayHold, but if the bytes may wait, it also counts them, so that concurrent calls for other
// connections of the user include them. The caller then queues the bytes, or adds them to held.expected.
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

// expect counts the bytes of missed events before they are queued. If Limits.UserBytes for this user, or Options.Missed
// for all connections of the hub, does not allow these bytes, expect counts nothing and returns false. If expect
// returns true, the caller calls expectNoMore with the same number once the events were queued or dropped.
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

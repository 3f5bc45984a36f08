package hub

import "github.com/edumatrix/interlinked/services/gateway/frame"

func newConn(id, user string, e frame.Encoding, h *Hub) *Conn {
	c := &Conn{ID: id, User: user, encoding: e, hub: h, subscribers: make([]subscriber, len(h.all)),
		progress: newProgress(len(h.logs)), done: make(chan struct{})}
	for i, sh := range h.all {
		c.subscribers[i] = subscriber{conn: c, attached: sh.log < 0}
	}
	return c
}

// Bind sets the functions of the transport. The hub calls the function flush in a new goroutine when a frame waits,
// when Kick is called, and when the connection is to end. Such a call is named a flush. The hub starts no flush while
// another flush is running. A flush must call Next until the result more is false, or until Next returns no frames and
// the reason why the connection ends. The function ended is called once, when the connection is to end. It is called
// while a lock is held: it must not wait, nor call the hub.
func (c *Conn) Bind(flush func(), ended func(Reason)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flush, c.ended = flush, ended
	if c.reason != nil && ended != nil {
		ended(*c.reason)
	}
	if c.queue.len() > 0 || c.reason != nil {
		c.ring()
	}
}

// Kick starts a flush even if no frame waits in the queue, because the transport has a frame of its own to write, such
// as a ping.
func (c *Conn) Kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		c.kicked = true
		c.ring()
	}
}

// Encoding returns the encoding of the connection's frames.
func (c *Conn) Encoding() frame.Encoding { return c.encoding }

// encode encodes a frame that the gateway has made itself. Encoding such a frame never fails.
func (c *Conn) encode(f frame.Frame) []byte {
	text, _ := f.Encode(c.encoding)
	return text
}

// Send queues a frame for this connection alone. The frame must be one whose encoding cannot fail.
func (c *Conn) Send(f frame.Frame) {
	text := c.encode(f)
	c.mu.Lock()
	defer c.unlock()
	c.push(item{own: &queued{text: text}})
}

// Reply queues an encoded answer to a query. Answers do not count against Limits.Frames and Limits.Bytes, because the
// number of queries in flight is bounded. Reply returns false if Limits.UserBytes does not allow the answer. If Reply
// returns true, the function taken is called when the frame leaves the queue or the connection ends. It may be nil.
func (c *Conn) Reply(text []byte, taken func()) bool {
	c.mu.Lock()
	defer c.unlock()
	if c.reason != nil {
		if taken != nil {
			c.left = append(c.left, taken)
		}
		return true
	}
	if !c.reserve(len(text)) {
		return false
	}
	c.push(item{own: &queued{text: text, reply: true, taken: taken}})
	return true
}

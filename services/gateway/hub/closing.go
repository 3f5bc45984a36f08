package hub

import "github.com/edumatrix/interlinked/proto/catalog"

// Close makes the connection end for a reason. Only the first call has an effect. Frames that are already queued are
// still written, unless the reason is Lost, Left or Slow. If the reason is Shutdown or TokenExpired, Close first queues
// a heartbeat, provided that a newer resume token is available (see beatLast).
func (c *Conn) Close(r Reason) {
	var positions []catalog.Position
	if r == Shutdown || r == TokenExpired {
		positions = c.hub.complete()
	}
	c.mu.Lock()
	if positions != nil {
		c.beatLast(c.hub.share(positions))
	}
	c.close(r)
	c.unlock()
}

func (c *Conn) close(r Reason) {
	if c.reason != nil {
		return
	}
	if r == Slow || r == Lost || r == Left {
		c.drop()
	}
	if f, ok := r.Frame(); ok {
		_, _ = c.queue.push(item{own: &queued{text: c.encode(f), reply: true}}, &c.hub.options.Limits, true)
	}
	c.reason = &r
	close(c.done)
	if c.ended != nil {
		c.ended(r)
	}
	c.ring()
}

// drop empties the queue. Conn.unlock then calls the functions queued.taken of the dropped frames.
func (c *Conn) drop() { c.left = append(c.left, c.queue.drain()...) }

// drain empties the queue, and returns the functions queued.taken of its frames.
func (q *queue) drain() (taken []func()) {
	for _, it := range q.items[q.head:] {
		if it.own != nil && it.own.taken != nil {
			taken = append(taken, it.own.taken)
		}
	}
	*q = queue{first: q.first + q.len(), took: q.took}
	return taken
}

// Ended reports whether the connection is closed or is being closed.
func (c *Conn) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason != nil
}

// Done returns a channel that is closed when the connection begins to close.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Reason returns the reason for which the connection was or is being closed. It returns false if the connection is
// open.
func (c *Conn) Reason() (Reason, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		return Reason{}, false
	}
	return *c.reason, true
}

package hub

import (
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Conn is one client's connection: a queue that its transport writes from, and for each log the position up to which
// the client has everything. No call that queues a frame waits: the connection of a client that does not keep up is
// closed, so that it does not delay others.
type Conn struct {
	ID   string
	User string

	hub         *Hub
	encoding    frame.Encoding
	subscribers []subscriber // one in each shard
	slot        int          // of the heartbeats; see Hub.Run
	done        chan struct{}

	mu       sync.Mutex
	queue    queue
	flush    func()
	flushing bool     // from the start of a flush until Next has returned that it is over
	kicked   bool     // the flush is to write frames of the transport's own, such as pings
	left     []func() // functions of frames that have left the queue, called once the lock is free
	reason   *Reason
	ended    func(Reason)
	held     held
	progress progress
}

// queueEvent queues an event of the log with a number; -1 stands for no log.
func (c *Conn) queueEvent(e *Event, log int) {
	v := c.variant(e)
	if _, err := e.Frame(v); err != nil {
		return // A body that cannot be decoded is so for all connections: the fan-out logs it once.
	}
	c.mu.Lock()
	defer c.unlock()
	if log >= 0 && !e.state() {
		c.progress.queued(log, e.Position)
	}
	c.push(item{event: e, variant: v})
}

// push queues an item and starts a flush, or closes the connection where the queue has no room. The caller has the
// lock.
func (c *Conn) push(it item) {
	if c.reason != nil {
		return
	}
	dropped, ok := c.queue.push(it, &c.hub.options.Limits, c.mayHold(len(it.text())))
	if dropped > 0 {
		c.hub.options.Metrics.Dropped.Add(float64(dropped))
	}
	if !ok {
		c.hub.options.Metrics.Slow.Inc()
		c.close(Slow)
		return
	}
	c.ring()
}

// ring starts a flush, unless one is running.
func (c *Conn) ring() {
	if c.flush != nil && !c.flushing {
		c.flushing = true
		go c.flush()
	}
}

// Next appends the frames that wait, in order: about maxBytes of them, and at least one. It returns the reason once the
// connection is to end. It returns false when the flush is over: the flush must not touch the transport any more, since
// the next frame starts another one. No flush starts after one to which Next has returned a reason.
func (c *Conn) Next(frames [][]byte, maxBytes int) (_ [][]byte, ending *Reason, more bool) {
	c.mu.Lock()
	defer c.unlock()
	c.flushing = c.queue.len() > 0 || c.kicked || c.reason != nil
	c.kicked = false
	c.held.writing = 0
	if c.queue.len() > 0 {
		c.queue.took = time.Now()
	}
	for c.queue.len() > 0 && c.held.writing < maxBytes {
		taken := len(frames)
		frames = c.take(frames)
		for _, text := range frames[taken:] {
			c.held.writing += len(text)
		}
	}
	return frames, c.reason, c.flushing
}

// take moves the first item from the queue into frames, and a heartbeat behind it where one is due.
func (c *Conn) take(frames [][]byte) [][]byte {
	it := c.queue.pop()
	if it.event == nil {
		c.progress.wrote(it.own.token)
		if it.own.taken != nil {
			c.left = append(c.left, it.own.taken)
		}
		return append(frames, it.own.text)
	}
	// The event may have expired while it waited, here or in the buffer.
	text := it.event.shown(it.variant, c.hub.options.Now())
	frames = append(frames, text)
	if it.missed > 0 {
		frames = c.tookMissed(it, len(text), frames)
	}
	return frames
}

// unlock frees the lock, after it has brought the account up to date, and calls the functions of the frames that have
// left the queue.
func (c *Conn) unlock() {
	c.settle()
	left := c.left
	c.left = nil
	c.mu.Unlock()
	for _, f := range left {
		f()
	}
}

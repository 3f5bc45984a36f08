package hub

import (
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Conn is one client's connection. It has a queue of frames, which the transport writes, and its progress in each log.
// Queuing a frame does not wait for the client: if a client does not keep up, its connection is closed, so that the
// client does not delay other clients.
type Conn struct {
	ID   string
	User string

	hub         *Hub
	encoding    frame.Encoding
	subscribers []subscriber // one for each shard
	slot        int          // index in Hub.slots, for heartbeats
	done        chan struct{}

	mu       sync.Mutex
	queue    queue
	flush    func()
	flushing bool     // whether a flush (see Bind) runs; set by ring and Next
	kicked   bool     // whether the transport has frames of its own to write, such as pings
	left     []func() // functions queued.taken of frames that have left the queue; called by unlock
	reason   *Reason
	ended    func(Reason)
	held     held
	progress progress
}

// queueEvent queues an event. The parameter log is -1 if the owner has no log, or if the event is part of a snapshot.
func (c *Conn) queueEvent(e *Event, log int) {
	v := c.variant(e)
	if _, err := e.Frame(v); err != nil {
		return // the event cannot be encoded; Fanout.deliver logs the error once for each delivered event
	}
	c.mu.Lock()
	defer c.unlock()
	if log >= 0 && !e.state() {
		c.progress.queued(log, e.Position)
	}
	c.push(item{event: e, variant: v})
}

// push queues an item and starts a flush, unless the connection is closing. If the queue is full and not enough can be
// dropped (see queue.push), push closes the connection. The caller holds the connection's lock.
func (c *Conn) push(it item) {
	if c.reason != nil {
		return
	}
	dropped, ok := c.queueItem(it)
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

// ring starts a flush, unless one is running or Bind was not called yet.
func (c *Conn) ring() {
	if c.flush != nil && !c.flushing {
		c.flushing = true
		go c.flush()
	}
}

// Next moves frames from the queue to the end of the parameter frames, until it has moved at least maxBytes bytes or no
// frame waits. The result ending is the reason if the connection is to end. If the result more is false, the flush that
// calls Next (see Bind) must end: the next frame starts a new one. No flush starts after Next has returned a reason.
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

// take moves the frame of the first item from the queue to the list frames, followed by a heartbeat if one is due.
func (c *Conn) take(frames [][]byte) [][]byte {
	it := c.queue.pop()
	if it.event == nil {
		c.progress.wrote(it.own.token)
		if it.own.taken != nil {
			c.left = append(c.left, it.own.taken)
		}
		return append(frames, it.own.text)
	}
	// The event may have expired while it waited in the queue or in the event buffer.
	text := it.event.shown(it.variant, c.hub.options.Now())
	frames = append(frames, text)
	if it.missed > 0 {
		frames = c.tookMissed(it, len(text), frames)
	}
	return frames
}

// unlock updates the user's account, releases the lock, and calls queued.taken for the frames that have left the queue.
func (c *Conn) unlock() {
	c.settle()
	left := c.left
	c.left = nil
	c.mu.Unlock()
	for _, f := range left {
		f()
	}
}

package hub

import (
	"sync"
)

// Limits bound what waits for one connection.
type Limits struct {
	Frames int // 1,024 when 0
	Bytes  int // 4 MiB when 0
}

func (l Limits) orDefault() Limits {
	if l.Frames == 0 {
		l.Frames = 1024
	}
	if l.Bytes == 0 {
		l.Bytes = 4 << 20
	}
	return l
}

// Conn is one client's connection as the hub sees it: a queue that its transport writes from. Nothing that puts
// something in ever waits: a client that does not keep up is closed, and costs nobody else anything.
type Conn struct {
	ID   string
	User string

	limits  Limits
	metrics *Metrics

	mu     sync.Mutex
	queue  []item
	bytes  int
	first  int            // number of queue[0]; items are numbered in the order in which they came
	newest map[string]int // stream → number of the item that may be replaced by a newer one
	reason *Reason

	missing int // logs whose rooms are not known yet
	onReady []byte

	wake chan struct{}
	done chan struct{}
}

// item is a frame that waits. One with a stream may be replaced by a newer one of that stream.
type item struct {
	frame   []byte
	stream  string
	version int64
	spare   bool // dropped first under load
}

func newConn(id, user string, limits Limits, m *Metrics) *Conn {
	return &Conn{ID: id, User: user, limits: limits.orDefault(), metrics: m, newest: map[string]int{},
		wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// Send queues a frame of this connection alone (a reply, an outcome).
func (c *Conn) Send(frame []byte) { c.push(item{frame: frame}) }

// Close ends the connection for a reason; the first one counts. What was queued before is still written.
func (c *Conn) Close(r Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.close(r)
}

func (c *Conn) close(r Reason) {
	if c.reason != nil {
		return
	}
	c.reason = &r
	close(c.done)
	c.ring()
}

// Done is closed when the connection is to end.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Reason says why it ends, once it does.
func (c *Conn) Reason() (Reason, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		return Reason{}, false
	}
	return *c.reason, true
}

// Wake gets a value when Take may have something again.
func (c *Conn) Wake() <-chan struct{} { return c.wake }

// Take gives the frames that wait, at most so many, in order.
func (c *Conn) Take(most int) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(most, len(c.queue))
	if n == 0 {
		return nil
	}
	frames := make([][]byte, n)
	for i := range n {
		it := &c.queue[i]
		frames[i] = it.frame
		c.bytes -= len(it.frame)
		if it.stream != "" && c.newest[it.stream] == c.first+i {
			delete(c.newest, it.stream)
		}
		*it = item{}
	}
	c.first += n
	if c.queue = c.queue[n:]; len(c.queue) > 0 {
		c.ring()
	} else {
		c.queue = nil
	}
	return frames
}

// give queues an event. Only its newest value is kept of what is no durable event.
func (c *Conn) give(e *Event) {
	frame, err := e.Frame()
	if err != nil {
		// A body that cannot be decoded is the same for everybody: the fan-out reports it once.
		return
	}
	it := item{frame: frame, version: e.Version, spare: e.state()}
	if mergeable(e.Class) {
		it.stream = e.Stream
	}
	c.push(it)
}

func (c *Conn) push(it item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason != nil {
		return
	}
	if it.stream != "" {
		if at, waits := c.newest[it.stream]; waits {
			if old := &c.queue[at-c.first]; old.version <= it.version {
				c.bytes += len(it.frame) - len(old.frame)
				*old = it
			}
			return
		}
	}
	if c.full(len(it.frame)) {
		if c.dropSpare(); c.full(len(it.frame)) {
			if it.spare {
				c.metrics.Dropped.Inc()
				return
			}
			c.metrics.Slow.Inc()
			c.close(Slow)
			return
		}
	}
	if it.stream != "" {
		c.newest[it.stream] = c.first + len(c.queue)
	}
	c.queue = append(c.queue, it)
	c.bytes += len(it.frame)
	c.ring()
}

func (c *Conn) full(more int) bool {
	return len(c.queue) >= c.limits.Frames || len(c.queue) > 0 && c.bytes+more > c.limits.Bytes
}

// dropSpare makes room by what is worth least: what is true only now.
func (c *Conn) dropSpare() {
	kept := c.queue[:0]
	clear(c.newest)
	for _, it := range c.queue {
		if it.spare {
			c.bytes -= len(it.frame)
			c.metrics.Dropped.Inc()
			continue
		}
		if it.stream != "" {
			c.newest[it.stream] = c.first + len(kept)
		}
		kept = append(kept, it)
	}
	clear(c.queue[len(kept):])
	c.queue = kept
}

func (c *Conn) ring() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// attached counts a log whose rooms are known now; after the last one the client is told that it misses nothing.
func (c *Conn) attached() {
	c.mu.Lock()
	c.missing--
	ready := c.missing == 0
	c.mu.Unlock()
	if ready {
		c.Send(c.onReady)
	}
}

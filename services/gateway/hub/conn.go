package hub

import (
	"slices"
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

	hub     *Hub
	limits  Limits
	metrics *Metrics

	mu     sync.Mutex
	queue  []item
	bytes  int
	missed missed
	first  int            // number of queue[0]; items are numbered in the order in which they came
	newest map[string]int // stream → number of the item that may be replaced by a newer one
	reason *Reason

	missing int                          // logs whose rooms are not known yet
	greet   func(tooFar []string) []byte // tells one who came back where it stands
	session string                       // which the connection is of
	written string                       // the last mark that was taken from the queue
	tooFar  []string
	// By log: up to where it is complete without the fan-out, the highest position given, and what its mark says.
	floors, given, marked []int64

	wake chan struct{}
	done chan struct{}
}

// item is a frame that waits. One with a stream may be replaced by a newer one of that stream.
type item struct {
	frame   []byte
	stream  string
	version int64
	spare   bool // dropped first under load
	missed  bool // not counted against the limits
	mark    string
}

// missed is what of the queue is no fault of a client that does not keep up: it was given all at once, bounded before.
type missed struct{ frames, bytes int }

func newConn(id, user string, h *Hub) *Conn {
	return &Conn{ID: id, User: user, hub: h, limits: h.options.Limits.orDefault(), metrics: h.options.Metrics,
		newest: map[string]int{}, missing: len(h.logs), floors: make([]int64, len(h.logs)),
		given: make([]int64, len(h.logs)), marked: make([]int64, len(h.logs)),
		wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// Send queues a frame of this connection alone (a reply, an outcome).
func (c *Conn) Send(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.push(item{frame: frame})
}

// Greet sets the frame that tells a client that came back where it stands. It follows what was missed. To be set before
// the connection is attached.
func (c *Conn) Greet(frame func(tooFar []string) []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.greet = frame
}

// Begin sets the session that the client is told to come back to. To be called before the connection is attached.
func (c *Conn) Begin(session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = session
}

// Written is the last mark that went out to the client; it may not have read it.
func (c *Conn) Written() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written
}

// Close ends the connection for a reason; the first one counts. What was queued before is still written.
func (c *Conn) Close(r Reason) {
	var positions []int64
	if r == Shutdown || r == TokenExpired {
		positions = c.hub.complete()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if positions != nil {
		c.mark(positions, true)
	}
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
		if it.mark != "" {
			c.written = it.mark
		}
		c.bytes -= len(it.frame)
		if it.missed {
			c.missed.frames--
			c.missed.bytes -= len(it.frame)
		}
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

// give queues an event of a log; -1 is no log. Only its newest value is kept of what is no durable event.
func (c *Conn) give(e *Event, log int) {
	it, ok := itemOf(e)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if log >= 0 && !e.state() {
		c.given[log] = max(c.given[log], e.Position)
	}
	c.push(it)
}

// catchUp queues what was missed of a log.
func (c *Conn) catchUp(events []*Event, log int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason != nil {
		return
	}
	for _, e := range events {
		it, ok := itemOf(e)
		if !ok {
			continue
		}
		it.missed, it.stream = true, "" // what follows may be newer, and comes in its place
		c.given[log] = max(c.given[log], e.Position)
		c.missed.frames++
		c.missed.bytes += len(it.frame)
		c.bytes += len(it.frame)
		c.queue = append(c.queue, it)
	}
	c.ring()
}

func itemOf(e *Event) (item, bool) {
	frame, err := e.Frame()
	if err != nil {
		// A body that cannot be decoded is the same for everybody: the fan-out reports it once.
		return item{}, false
	}
	it := item{frame: frame, version: e.Version, spare: e.state()}
	if mergeable(e.Class) {
		it.stream = e.Stream
	}
	return it, true
}

func (c *Conn) push(it item) {
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
	frames, bytes := len(c.queue)-c.missed.frames, c.bytes-c.missed.bytes
	return frames >= c.limits.Frames || frames > 0 && bytes+more > c.limits.Bytes
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

// attached notes that the rooms of a log are known, as of its floor. After the last log the client is told where it
// stands, if it came back, and that it misses nothing, with its first mark.
func (c *Conn) attached(log int, floor int64, tooFar []string) {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floors[log] = floor
	c.tooFar = append(c.tooFar, tooFar...)
	if c.missing--; c.missing > 0 {
		return
	}
	if c.greet != nil {
		slices.Sort(c.tooFar)
		c.push(item{frame: c.greet(slices.Compact(c.tooFar))})
	}
	m := c.standing(positions)
	copy(c.marked, m)
	first := c.hub.mark(m)
	c.push(item{frame: first.ready(c.session), mark: first.String()})
}

// mark queues a mark when it is newer than the last one, and something was given that the last one does not cover;
// anyway: when it is newer.
func (c *Conn) mark(positions []int64, anyway bool) {
	if c.missing > 0 || c.reason != nil {
		return
	}
	m := c.standing(positions)
	newer, wanted := false, anyway
	for log, at := range m {
		newer = newer || at > c.marked[log]
		wanted = wanted || c.given[log] > c.marked[log]
	}
	if newer && wanted {
		copy(c.marked, m)
		newest := c.hub.mark(m)
		c.push(item{frame: newest.frame(), mark: newest.String(), spare: true})
	}
}

// standing says, for each log, up to where everything is in this queue or was written. Positions say up to where the
// fan-out was complete a moment ago.
func (c *Conn) standing(positions []int64) []int64 {
	at := make([]int64, len(positions))
	for log := range at {
		at[log] = max(c.floors[log], positions[log], c.marked[log])
	}
	return at
}

package hub

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// Conn is one client's connection as the hub sees it: a queue that its transport writes from, and up to where the
// client has everything. Nothing that puts something into the queue ever waits: a client that does not keep up is
// closed, and costs nobody else anything.
type Conn struct {
	ID   string
	User string

	hub     *Hub
	account *account // of the user
	seats   []seat   // one in each view
	slot    int      // of the marks; see Hub.Run

	mu       sync.Mutex
	queue    queue
	writing  int // bytes that the flush has taken last
	expected int // bytes of missed events that are about to be queued
	held     int // what of this the account counts
	pending  int // missed events in it
	reason   *Reason
	flush    func()
	flushing bool // from the start of a flush until Next has told it that it is over
	kicked   bool // the flush that runs has to write what the transport has of its own
	ended    func(Reason)

	missing int                          // logs whose rooms are not known yet
	greet   func(tooFar []string) []byte // the reply to a client that came back
	session string                       // which the connection is of
	written string                       // the last mark that was taken from the queue
	tooFar  []string
	logs    []standing // by number

	// The bytes that a client that came back has taken since its last mark, and when the first of them were.
	unmarked   int
	unmarkedAt time.Time

	left []func() // called once the lock is free: their frames have left the queue

	wake chan struct{}
	done chan struct{}
}

// standing is how far one connection has one log.
type standing struct {
	floor  int64 // it is complete up to here without the fan-out
	given  int64 // the highest position queued
	marked int64 // what its last mark says
	// had is what the mark of a client that came back says, and then the last missed event taken; known reports whether
	// that mark knows the log, and partial that some of what was missed up to here is left out, which the client has not
	// been told yet.
	had            Point
	known, partial bool
}

func newConn(id, user string, h *Hub) *Conn {
	c := &Conn{ID: id, User: user, hub: h, seats: make([]seat, len(h.all)), missing: len(h.logs),
		logs: make([]standing, len(h.logs)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	for i, v := range h.all {
		c.seats[i] = seat{conn: c, attached: v.log < 0}
	}
	return c
}

// Bind tells the hub how the connection is written. Whenever something waits or the connection is to end, and no flush
// is running, the hub starts flush in a goroutine of its own, which calls Next until that returns no frames. The
// function ended is called once, when the connection is to end. It is called under a lock: it must not wait, nor call
// the hub.
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

// Send queues a frame of this connection alone.
func (c *Conn) Send(text []byte) {
	c.mu.Lock()
	defer c.unlock()
	c.push(item{own: &frame{text: text}})
}

// Reply queues an answer to a query. It does not count against the limits of the queue, since how many there are is
// bounded before they are asked for; it returns false where the user's connections hold too much to queue it. The function
// taken, if any, is called when the frame leaves the queue, also where the connection ends first.
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
	c.push(item{own: &frame{text: text, reply: true, taken: taken}})
	return true
}

// Greet sets the reply to a client that came back: it follows what was missed. It has to be set before the connection
// is attached.
func (c *Conn) Greet(frame func(tooFar []string) []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.greet = frame
}

// Begin sets the session that the client is told to come back to. It has to be set before the connection is attached.
func (c *Conn) Begin(session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = session
}

// Returns notes what a client that comes back has: the marks that it is given while it gets what it missed go on from
// there.
func (c *Conn) Returns(mark Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for log, owner := range c.hub.logs {
		c.logs[log].had, c.logs[log].known = mark[owner]
		c.logs[log].partial = mark[owner].Partial
	}
}

// Written is the last mark that went out to the client; it may not have read it.
func (c *Conn) Written() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written
}

// Close ends the connection for a reason; the first one counts. Frames that were queued before are still written,
// unless the client is lost or too slow.
func (c *Conn) Close(r Reason) {
	var positions []int64
	if r == Shutdown || r == TokenExpired {
		positions = c.hub.complete()
	}
	c.mu.Lock()
	if positions != nil {
		c.mark(c.hub.newMark(positions), true)
	}
	c.close(r)
	c.unlock()
}

// unlock counts what the connection holds now, and calls the functions of the frames that have left the queue.
func (c *Conn) unlock() {
	c.settle()
	left := c.left
	c.left = nil
	c.mu.Unlock()
	for _, f := range left {
		f()
	}
}

func (c *Conn) close(r Reason) {
	if c.reason != nil {
		return
	}
	c.reason = &r
	close(c.done)
	if c.ended != nil {
		c.ended(r)
	}
	if r == Slow || r == Lost || r == Left {
		c.drop()
	}
	c.ring()
}

// drop forgets what waits.
func (c *Conn) drop() {
	c.left = append(c.left, c.queue.drain()...)
}

// Ended reports whether the connection is to end.
func (c *Conn) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason != nil
}

// Done is closed when the connection is to end.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Reason is why the connection ends, once it does.
func (c *Conn) Reason() (Reason, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		return Reason{}, false
	}
	return *c.reason, true
}

// Wake gets a value when something waits again, of a connection that is not bound.
func (c *Conn) Wake() <-chan struct{} { return c.wake }

// Next appends the frames that wait, in order: about maxBytes of them, and at least one. It returns the reason once the
// connection is to end. It returns false when the flush is over: the flush must touch nothing of the transport any more,
// since whatever is queued next starts another one. No flush starts after one that has been told the reason.
func (c *Conn) Next(frames [][]byte, maxBytes int) (_ [][]byte, ending *Reason, more bool) {
	c.mu.Lock()
	defer c.unlock()
	before := len(frames)
	c.writing = 0
	kicked := c.kicked
	c.kicked = false
	for bytes := 0; c.queue.len() > 0 && bytes < maxBytes; {
		taken := len(frames)
		frames = c.take(frames)
		for _, f := range frames[taken:] {
			bytes += len(f)
		}
		c.writing = bytes
	}
	if len(frames) > before {
		c.queue.took = time.Now()
		return frames, c.reason, true
	}
	more = kicked || c.reason != nil
	c.flushing = more
	return frames, c.reason, more
}

// Take returns at most so many of the frames that wait, in order.
func (c *Conn) Take(maxFrames int) (frames [][]byte) {
	c.mu.Lock()
	defer c.unlock()
	for len(frames) < maxFrames && c.queue.len() > 0 {
		frames = c.take(frames)
	}
	if len(frames) > 0 {
		c.queue.took = time.Now()
	}
	if c.queue.len() > 0 {
		c.ring()
	}
	return frames
}

// take moves the first item from the queue into frames, and a mark behind it where one is due.
func (c *Conn) take(frames [][]byte) [][]byte {
	it := c.queue.pop()
	text := it.text()
	if it.event != nil {
		text = it.event.shown(c.hub.options.Now()) // however long it has waited, here or among the recent events
	}
	frames = append(frames, text)
	switch {
	case it.missed > 0:
		c.logs[it.missed-1].had.Position = it.event.Position
		if mark := c.passing(len(text)); mark != nil {
			frames = append(frames, mark)
		}
	case it.own != nil:
		if it.own.mark != "" {
			c.written = it.own.mark
		}
		if it.own.taken != nil {
			c.left = append(c.left, it.own.taken)
		}
	}
	return frames
}

const (
	// passingBytes and passingTime are how much of what it missed, and for how long, a client is sent without a mark.
	// A client on a slow link that is cut off goes on from the last one.
	passingBytes = 256 << 10
	passingTime  = 5 * time.Second
)

// passing returns a mark behind a missed event, where one is due.
func (c *Conn) passing(more int) []byte {
	now := time.Now()
	if c.unmarked == 0 && c.unmarkedAt.IsZero() {
		c.unmarkedAt = now
	}
	if c.unmarked += more; c.unmarked < passingBytes && now.Sub(c.unmarkedAt) < passingTime {
		return nil
	}
	c.unmarked, c.unmarkedAt = 0, now
	m := Mark{}
	for log, owner := range c.hub.logs {
		if s := &c.logs[log]; s.known {
			point := s.had
			point.Partial = s.partial
			m[owner] = point
		}
	}
	c.written = m.String()
	return markFrame(c.written)
}

// give queues an event of a log; -1 stands for none. Of an event that is not durable, only the newest value is kept.
func (c *Conn) give(e *Event, log int) {
	if _, err := e.Frame(); err != nil {
		return // A body that cannot be decoded is the same for everybody: the fan-out reports it once.
	}
	c.mu.Lock()
	defer c.unlock()
	if log >= 0 && !e.state() {
		c.logs[log].given = max(c.logs[log].given, e.Position)
	}
	c.push(item{event: e})
}

// missed is what one connection missed of a log, ready to be queued.
type missed struct {
	items []item
	bytes int
	last  int64 // position
}

// missedOf makes ready what was missed, which takes a while where that is much.
func missedOf(events []*Event, log int) (m missed) {
	for i, e := range events {
		if (i+1)%encodedAtOnce == 0 {
			runtime.Gosched()
		}
		if text, err := e.Frame(); err == nil {
			m.items = append(m.items, item{event: e, missed: int8(log + 1)})
			m.bytes += len(text)
			m.last = max(m.last, e.Position)
		}
	}
	return m
}

// catchUp queues what was missed of a log; partial reports whether some of it is left out.
func (c *Conn) catchUp(m missed, log int, partial bool) {
	c.mu.Lock()
	defer c.unlock()
	if c.reason != nil {
		return
	}
	c.logs[log].partial = c.logs[log].partial || partial
	c.logs[log].given = max(c.logs[log].given, m.last)
	c.queue.pushMissed(m)
	c.ring()
}

func (c *Conn) push(it item) {
	if c.reason != nil {
		return
	}
	dropped, ok := c.queue.push(it, &c.hub.options.Limits, c.mayHold(len(it.text())))
	if dropped > 0 {
		c.hub.options.Metrics.Dropped.Add(float64(dropped))
	}
	switch {
	case ok:
		c.ring()
	case it.spare():
		c.hub.options.Metrics.Dropped.Inc()
	default:
		c.hub.options.Metrics.Slow.Inc()
		c.close(Slow)
	}
}

// Kick starts the flush although nothing may wait: the transport has something of its own to write.
func (c *Conn) Kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		c.kicked = true
		c.ring()
	}
}

// ring has somebody write what waits.
func (c *Conn) ring() {
	if c.flush != nil {
		if !c.flushing {
			c.flushing = true
			go c.flush()
		}
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// attached notes that the rooms of a log are known, as of its floor. After the last log the client gets the reply to
// its return, if it came back, and its first mark: from then on it misses nothing.
func (c *Conn) attached(log int, floor int64, tooFar []string) {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.logs[log].floor = floor
	c.tooFar = append(c.tooFar, tooFar...)
	if c.missing--; c.missing > 0 {
		return
	}
	if c.greet != nil {
		slices.Sort(c.tooFar)
		c.push(item{own: &frame{text: c.greet(slices.Compact(c.tooFar)), reply: true}})
	}
	c.tooFar, c.greet = nil, nil
	first := c.hub.newMark(c.standing(c.hub.newMark(positions)))
	c.setMarked(first)
	c.push(item{own: &frame{text: readyFrame(first.text(), c.session), mark: first.text()}})
}

// mark queues a mark when it is newer than the last one, and something was given that the last one does not cover;
// anyway: when it is newer. Most connections share it with others.
func (c *Conn) mark(shared *sharedMark, anyway bool) {
	if c.missing > 0 || c.reason != nil {
		return
	}
	newer, wanted, same := false, anyway, true
	for log := range c.logs {
		s, at := &c.logs[log], shared.positions[log]
		newer = newer || max(at, s.floor) > s.marked
		wanted = wanted || s.given > s.marked
		same = same && at >= max(s.floor, s.marked)
	}
	if !newer || !wanted {
		return
	}
	m := shared
	if !same {
		m = c.hub.newMark(c.standing(shared))
	}
	c.setMarked(m)
	c.push(item{own: &frame{text: m.frame(), mark: m.text(), spare: true}})
}

func (c *Conn) setMarked(m *sharedMark) {
	for log := range c.logs {
		c.logs[log].marked = m.positions[log]
	}
}

// standing is, for each log, the position up to which everything is in this queue or was written. The shared mark
// says up to where the fan-out was complete a moment ago.
func (c *Conn) standing(shared *sharedMark) []int64 {
	at := make([]int64, len(c.logs))
	for log := range at {
		s := &c.logs[log]
		at[log] = max(s.floor, shared.positions[log], s.marked)
	}
	return at
}

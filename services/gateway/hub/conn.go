package hub

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Conn is one client's connection as the hub sees it: a queue that its transport writes from, and up to where the
// client has everything. Nothing that puts something into the queue ever waits: a client that does not keep up is
// closed, and costs nobody else anything.
type Conn struct {
	ID   string
	User string

	hub      *Hub
	encoding frame.Encoding
	account  *account // of the user
	seats    []seat   // one in each view
	slot     int      // of the heartbeats; see Hub.Run

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

	missing int // logs whose rooms are not known yet, and what else the greeting waits for, see Hold
	greet   func(Greeting) frame.Frame
	written string     // the last resume token that was taken from the queue
	tooFar  []string   // rooms that are not recovered
	logs    []standing // by number

	// The bytes that a client that resumes has taken since its last resume token, and when the first of them were.
	uncovered   int
	uncoveredAt time.Time

	left []func() // called once the lock is free: their frames have left the queue

	wake chan struct{}
	done chan struct{}
}

// standing is how far one connection has one log.
type standing struct {
	floor   int64 // it is complete up to here without the fan-out
	given   int64 // the highest position queued
	covered int64 // what its last resume token says
	// had is what the resume token of a client that came back says, and then the last missed event taken; known reports
	// whether that token knows the log.
	had   Point
	known bool
}

func newConn(id, user string, e frame.Encoding, h *Hub) *Conn {
	c := &Conn{ID: id, User: user, encoding: e, hub: h, seats: make([]seat, len(h.all)), missing: len(h.logs),
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

// Encoding is how the connection's frames are written.
func (c *Conn) Encoding() frame.Encoding { return c.encoding }

// encode writes a frame of the gateway's own, which always has a form.
func (c *Conn) encode(f frame.Frame) []byte {
	text, _ := f.Encode(c.encoding)
	return text
}

// Send queues a frame of this connection alone. It must not hold anything that may have no form in the encoding.
func (c *Conn) Send(f frame.Frame) {
	text := c.encode(f)
	c.mu.Lock()
	defer c.unlock()
	c.push(item{own: &queued{text: text}})
}

// Reply queues an answer to a query, encoded as the connection is. It does not count against the limits of the queue, since
// how many there are is bounded before they are asked for; it returns false where the user's connections hold too much to
// queue it. The function taken, if any, is called when the frame leaves the queue, also where the connection ends first.
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

// Greeting is where a connection stands when all rooms of its user are open.
type Greeting struct {
	ResumeToken string
	// NotRecovered lists the rooms of which it was not given what it missed, sorted.
	NotRecovered []string
}

// Greet sets the frame that is queued when all rooms of the user are open, behind what was missed; from then on the client
// misses nothing. It has to be set before the connection is attached. The function is called under a lock: it must not
// wait, nor call the hub.
func (c *Conn) Greet(greet func(Greeting) frame.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.greet = greet
}

// Hold has the greeting wait for as many calls of Release more. It has to be called before the connection is attached.
func (c *Conn) Hold(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.missing += n
}

// Release ends what Hold began.
func (c *Conn) Release() {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.found(positions)
}

// Returns notes what a client that comes back has: the resume tokens that it is given while it gets what it missed go on
// from there.
func (c *Conn) Returns(p Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for log, owner := range c.hub.logs {
		c.logs[log].had, c.logs[log].known = p[owner]
	}
}

// Written is the last resume token that went out to the client; it may not have read it.
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
		c.beatLast(c.hub.newProgress(positions))
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

// take moves the first item from the queue into frames, and a heartbeat behind it where one is due.
func (c *Conn) take(frames [][]byte) [][]byte {
	it := c.queue.pop()
	text := it.text()
	if it.event != nil {
		// However long it has waited, here or among the recent events.
		text = it.event.shown(it.variant, c.hub.options.Now())
	}
	frames = append(frames, text)
	switch {
	case it.missed > 0:
		c.logs[it.missed-1].had.Position = it.event.Position
		if beat := c.passing(len(text)); beat != nil {
			frames = append(frames, beat)
		}
	case it.own != nil:
		if it.own.token != "" {
			c.written = it.own.token
		}
		if it.own.taken != nil {
			c.left = append(c.left, it.own.taken)
		}
	}
	return frames
}

const (
	// passingBytes and passingTime are how much of what it missed, and for how long, a client is sent without a resume
	// token. A client on a slow link that is cut off goes on from the last one.
	passingBytes = 256 << 10
	passingTime  = 5 * time.Second
)

// passing returns a heartbeat behind a missed event, where one is due.
func (c *Conn) passing(more int) []byte {
	now := time.Now()
	if c.uncovered == 0 && c.uncoveredAt.IsZero() {
		c.uncoveredAt = now
	}
	if c.uncovered += more; c.uncovered < passingBytes && now.Sub(c.uncoveredAt) < passingTime {
		return nil
	}
	c.uncovered, c.uncoveredAt = 0, now
	c.written = c.passed()
	return c.encode(frame.Heartbeat(c.written))
}

// passed is the resume token of a client that is not greeted yet; empty where it brought none.
func (c *Conn) passed() string {
	p := Progress{}
	for log, owner := range c.hub.logs {
		if s := &c.logs[log]; s.known {
			p[owner] = s.had
		}
	}
	if len(p) == 0 {
		return ""
	}
	return c.hub.ResumeToken(c.User, p)
}

// give queues an event of a log; -1 stands for none. Of an event that is not durable, only the newest value is kept.
func (c *Conn) give(e *Event, log int) {
	v := c.variant(e)
	if _, err := e.Frame(v); err != nil {
		return // A body that cannot be decoded is the same for everybody: the fan-out reports it once.
	}
	c.mu.Lock()
	defer c.unlock()
	if log >= 0 && !e.state() {
		c.logs[log].given = max(c.logs[log].given, e.Position)
	}
	c.push(item{event: e, variant: v})
}

// missed is what one connection missed of a log, ready to be queued.
type missed struct {
	items []item
	bytes int
	last  int64 // position
}

// missedOf makes ready what was missed, which takes a while where that is much.
func (c *Conn) missedOf(events []*Event, log int) (m missed) {
	for i, e := range events {
		if (i+1)%encodedAtOnce == 0 {
			runtime.Gosched()
		}
		v := c.variant(e)
		if text, err := e.Frame(v); err == nil {
			m.items = append(m.items, item{event: e, variant: v, missed: int8(log + 1)})
			m.bytes += len(text)
			m.last = max(m.last, e.Position)
		}
	}
	return m
}

// notRecovered is one frame for each room, joined.
func (c *Conn) notRecovered(rooms []string) []byte {
	if len(rooms) == 0 {
		return nil
	}
	frames := make([][]byte, len(rooms))
	for i, room := range rooms {
		frames[i] = c.encode(frame.NotRecovered(room))
	}
	return frame.Join(c.encoding, frames)
}

// catchUp queues what was missed of a log. The rooms that are not recovered come first, so that no resume token passes
// them before the client knows.
func (c *Conn) catchUp(m missed, log int, notRecovered []byte) {
	c.mu.Lock()
	defer c.unlock()
	if c.reason != nil {
		return
	}
	if len(notRecovered) > 0 {
		c.push(item{own: &queued{text: notRecovered, reply: true}})
	}
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

// attached notes that the rooms of a log are known, as of its floor.
func (c *Conn) attached(log int, floor int64, tooFar []string) {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.logs[log].floor = floor
	c.tooFar = append(c.tooFar, tooFar...)
	c.found(positions)
}

// found counts one of the things that the greeting waits for. After the last one the client is greeted.
func (c *Conn) found(positions []int64) {
	if c.missing--; c.missing > 0 {
		return
	}
	first := c.hub.newProgress(c.standing(c.hub.newProgress(positions)))
	c.setCovered(first)
	if c.greet != nil {
		slices.Sort(c.tooFar)
		token := first.token(c.User)
		text := c.encode(c.greet(Greeting{ResumeToken: token, NotRecovered: slices.Compact(c.tooFar)}))
		c.push(item{own: &queued{text: text, reply: true, token: token}})
	}
	c.tooFar, c.greet = nil, nil
}

// beat queues a heartbeat that is due, or that covers more of what was given than the last resume token.
func (c *Conn) beat(shared *sharedProgress, due bool) {
	if c.missing > 0 {
		if due && c.reason == nil {
			c.push(item{own: c.heartbeat(c.passed())})
		}
		return
	}
	given := false
	for log := range c.logs {
		given = given || c.logs[log].given > c.logs[log].covered
	}
	if due || given && c.newer(shared) {
		c.cover(shared)
	}
}

// beatLast queues a heartbeat before the end, unless it says what the last one says.
func (c *Conn) beatLast(shared *sharedProgress) {
	if c.missing == 0 && c.newer(shared) {
		c.cover(shared)
	}
}

// newer reports whether some log has come further than the last resume token.
func (c *Conn) newer(shared *sharedProgress) bool {
	for log := range c.logs {
		if s := &c.logs[log]; max(shared.positions[log], s.floor) > s.covered {
			return true
		}
	}
	return false
}

// cover queues a heartbeat whose resume token covers everything that was queued before. Most connections share its
// progress with others.
func (c *Conn) cover(shared *sharedProgress) {
	if c.reason != nil {
		return
	}
	p := shared
	for log := range c.logs {
		if s := &c.logs[log]; shared.positions[log] < max(s.floor, s.covered) {
			p = c.hub.newProgress(c.standing(shared))
			break
		}
	}
	c.setCovered(p)
	c.push(item{own: c.heartbeat(p.token(c.User))})
}

func (c *Conn) setCovered(p *sharedProgress) {
	for log := range c.logs {
		c.logs[log].covered = p.positions[log]
	}
}

// standing is, for each log, the position up to which everything is in this queue or was written. The shared progress is
// where the fan-out was complete a moment ago.
func (c *Conn) standing(shared *sharedProgress) []int64 {
	at := make([]int64, len(c.logs))
	for log := range at {
		s := &c.logs[log]
		at[log] = max(s.floor, shared.positions[log], s.covered)
	}
	return at
}

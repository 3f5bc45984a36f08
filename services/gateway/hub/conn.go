package hub

import (
	"runtime"
	"slices"
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
	account     *account     // of the user
	subscribers []subscriber // one in each view
	slot        int          // of the heartbeats; see Hub.Run

	mu       sync.Mutex
	queue    queue
	writing  int // bytes that the flush took last
	expected int // bytes of missed events that are about to be queued
	held     int // bytes of this that the account counts
	pending  int // bytes of missed events in held
	reason   *Reason
	flush    func()
	flushing bool // from the start of a flush until Next has returned that it is over
	kicked   bool // the flush is to write frames of the transport's own, such as pings
	ended    func(Reason)

	awaited      int // logs whose rooms are not known yet, plus the calls of Release that the greeting waits for, see Hold
	greet        func(Greeting) frame.Frame
	written      string        // the last resume token that was taken from the queue
	notRecovered []string      // rooms whose missed events are not sent
	logs         []logProgress // by number

	// The bytes of missed events that were sent since the last resume token, and when the first of them were.
	uncovered   int
	uncoveredAt time.Time

	left []func() // functions of frames that have left the queue, called once the lock is free

	wake chan struct{}
	done chan struct{}
}

// logProgress is the progress of one connection in one log.
type logProgress struct {
	asOf    int64 // the position of the rooms: the client has everything up to here without the fan-out
	given   int64 // the highest position queued
	covered int64 // the position in the last resume token
	// had is the point in the resume token that the client has resumed from, and then that of the last missed event
	// sent. known reports whether that token has the log.
	had   Point
	known bool
}

func newConn(id, user string, e frame.Encoding, h *Hub) *Conn {
	c := &Conn{ID: id, User: user, encoding: e, hub: h, subscribers: make([]subscriber, len(h.all)), awaited: len(h.logs),
		logs: make([]logProgress, len(h.logs)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	for i, v := range h.all {
		c.subscribers[i] = subscriber{conn: c, attached: v.log < 0}
	}
	return c
}

// Bind sets the functions of the transport. Whenever a frame waits or the connection is to end, and no flush is
// running, the hub starts flush in a goroutine of its own, which calls Next until that returns false. The function
// ended is called once, when the connection is to end. It is called under a lock: it must not wait, nor call the hub.
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

// Encoding returns the encoding of the connection's frames.
func (c *Conn) Encoding() frame.Encoding { return c.encoding }

// encode encodes a frame that the gateway has made itself, which never fails.
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

// Reply queues an encoded answer to a query. Answers do not count against the limits of the queue, since the number of
// queries under way is bounded. Reply returns false where the bound of the user's connections has no room for the
// answer. The function taken, if any, is called when the frame leaves the queue, also where the connection ends first.
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

// Greeting is what the reply to connect contains of a connection's progress.
type Greeting struct {
	ResumeToken string
	// NotRecovered lists the rooms whose missed events were not sent, sorted.
	NotRecovered []string
}

// Greet sets the function that makes the reply to connect. The reply is queued behind the missed events, when all rooms
// of the user are open; from then on the client misses nothing. Greet has to be called before the connection is
// attached. The function is called under a lock: it must not wait, nor call the hub.
func (c *Conn) Greet(greet func(Greeting) frame.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.greet = greet
}

// Hold makes the greeting wait for n more calls of Release. It has to be called before the connection is attached.
func (c *Conn) Hold(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited += n
}

// Release counts down one of the calls that Hold makes the greeting wait for.
func (c *Conn) Release() {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.arrived(positions)
}

// SetProgress notes the progress that a client resumes from. The resume tokens between its missed events continue from
// there.
func (c *Conn) SetProgress(p Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for log, owner := range c.hub.logs {
		c.logs[log].had, c.logs[log].known = p[owner]
	}
}

// Written returns the last resume token that the transport took from the queue. The client may not have read it.
func (c *Conn) Written() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written
}

// Close ends the connection for a reason. Only the first call has an effect. Frames that were queued before are still
// written, unless the reason is Lost, Left or Slow.
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

// unlock settles the account, and calls the functions of the frames that have left the queue.
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

// drop empties the queue.
func (c *Conn) drop() {
	c.left = append(c.left, c.queue.drain()...)
}

// Ended reports whether the connection is to end.
func (c *Conn) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason != nil
}

// Done returns a channel that is closed when the connection is to end.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Reason returns why the connection ends. It returns false while it does not.
func (c *Conn) Reason() (Reason, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		return Reason{}, false
	}
	return *c.reason, true
}

// Wake returns a channel that receives a value when a frame waits, of a connection without Bind.
func (c *Conn) Wake() <-chan struct{} { return c.wake }

// Next appends the frames that wait, in order: about maxBytes of them, and at least one. It returns the reason once the
// connection is to end. It returns false when the flush is over: the flush must not touch the transport any more, since
// the next frame starts another one. No flush starts after one to which Next has returned a reason.
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

// Take returns at most maxFrames of the frames that wait, in order.
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
		// The event may have expired while it waited, here or in the buffer.
		text = it.event.shown(it.variant, c.hub.options.Now())
	}
	frames = append(frames, text)
	switch {
	case it.missed > 0:
		c.logs[it.missed-1].had.Position = it.event.Position
		if beat := c.missedHeartbeat(len(text)); beat != nil {
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
	// maxUncoveredBytes and maxUncoveredTime bound the missed events that are sent without a resume token behind them.
	// A client on a slow link whose connection is lost resumes from the last token that it has read.
	maxUncoveredBytes = 256 << 10
	maxUncoveredTime  = 5 * time.Second
)

// missedHeartbeat returns the heartbeat that is due behind a missed event of so many bytes, or nil.
func (c *Conn) missedHeartbeat(more int) []byte {
	now := time.Now()
	if c.uncovered == 0 && c.uncoveredAt.IsZero() {
		c.uncoveredAt = now
	}
	if c.uncovered += more; c.uncovered < maxUncoveredBytes && now.Sub(c.uncoveredAt) < maxUncoveredTime {
		return nil
	}
	c.uncovered, c.uncoveredAt = 0, now
	c.written = c.missedToken()
	return c.encode(frame.Heartbeat(c.written))
}

// missedToken returns the resume token of a client that was not greeted yet; empty where it does not resume.
func (c *Conn) missedToken() string {
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

// give queues an event of the log with a number; -1 stands for no log. An event that is not durable replaces the one
// that waits of its stream.
func (c *Conn) give(e *Event, log int) {
	v := c.variant(e)
	if _, err := e.Frame(v); err != nil {
		return // A body that cannot be decoded is so for all connections: the fan-out logs it once.
	}
	c.mu.Lock()
	defer c.unlock()
	if log >= 0 && !e.state() {
		c.logs[log].given = max(c.logs[log].given, e.Position)
	}
	c.push(item{event: e, variant: v})
}

// missed has the missed events of one connection and log, ready to be queued.
type missed struct {
	items []item
	bytes int
	last  int64 // position
}

// missedOf encodes missed events, which takes long where there are many.
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

// encodeNotRecovered returns one frame for each room, joined.
func (c *Conn) encodeNotRecovered(rooms []string) []byte {
	if len(rooms) == 0 {
		return nil
	}
	frames := make([][]byte, len(rooms))
	for i, room := range rooms {
		frames[i] = c.encode(frame.NotRecovered(room))
	}
	return frame.Join(c.encoding, frames)
}

// catchUp queues the missed events of a log. The rooms that are not recovered come first: no resume token may pass
// their events before the client knows.
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

// Kick starts the flush although no frame may wait, because the transport has a frame of its own to write, such as a
// ping.
func (c *Conn) Kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		c.kicked = true
		c.ring()
	}
}

// ring starts a flush, unless one is running.
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

// attached notes that the rooms of a log are known as of a position.
func (c *Conn) attached(log int, asOf int64, notRecovered []string) {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.logs[log].asOf = asOf
	c.notRecovered = append(c.notRecovered, notRecovered...)
	c.arrived(positions)
}

// arrived counts down what the greeting waits for, and greets the client after the last.
func (c *Conn) arrived(positions []int64) {
	if c.awaited--; c.awaited > 0 {
		return
	}
	first := c.hub.newProgress(c.positions(c.hub.newProgress(positions)))
	c.setCovered(first)
	if c.greet != nil {
		slices.Sort(c.notRecovered)
		token := first.token(c.User)
		text := c.encode(c.greet(Greeting{ResumeToken: token, NotRecovered: slices.Compact(c.notRecovered)}))
		c.push(item{own: &queued{text: text, reply: true, token: token}})
	}
	c.notRecovered, c.greet = nil, nil
}

// beat queues a heartbeat that is due, or whose resume token covers more than the last one of what was queued.
func (c *Conn) beat(shared *sharedProgress, due bool) {
	if c.awaited > 0 {
		if due && c.reason == nil {
			c.push(item{own: c.heartbeat(c.missedToken())})
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

// beatLast queues a heartbeat before the connection ends, unless its resume token would be that of the last one.
func (c *Conn) beatLast(shared *sharedProgress) {
	if c.awaited == 0 && c.newer(shared) {
		c.cover(shared)
	}
}

// newer reports whether the position of some log is above that in the last resume token.
func (c *Conn) newer(shared *sharedProgress) bool {
	for log := range c.logs {
		if s := &c.logs[log]; max(shared.positions[log], s.asOf) > s.covered {
			return true
		}
	}
	return false
}

// cover queues a heartbeat whose resume token covers everything that was queued before. Most connections have the
// shared progress.
func (c *Conn) cover(shared *sharedProgress) {
	if c.reason != nil {
		return
	}
	p := shared
	for log := range c.logs {
		if s := &c.logs[log]; shared.positions[log] < max(s.asOf, s.covered) {
			p = c.hub.newProgress(c.positions(shared))
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

// positions returns, for each log, the position up to which everything was queued or written. The shared progress is
// that of the fan-out a moment ago.
func (c *Conn) positions(shared *sharedProgress) []int64 {
	at := make([]int64, len(c.logs))
	for log := range at {
		s := &c.logs[log]
		at[log] = max(s.asOf, shared.positions[log], s.covered)
	}
	return at
}

package hub

import (
	"slices"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// progress records two positions for each log: the position up to which events were queued for a connection, and the
// position in the connection's last resume token. It also counts the answers that the greeting (the reply to connect)
// still waits for. It is guarded by the connection's lock.
type progress struct {
	awaited      int // logs whose rooms are not known yet, plus the calls of Release that are still to come
	greet        func(Greeting) frame.Frame
	written      string        // the last resume token that was taken from the queue
	notRecovered []string      // rooms whose missed events are not sent
	logs         []logProgress // by number of the log

	// Resume tokens are also sent between missed events (see tookMissed). uncovered is the number of bytes of missed
	// events that were sent since the last of these tokens, and uncoveredAt is the time when that token was sent. Before
	// the first token, uncovered counts from the first missed event, and uncoveredAt is the time when that event was
	// sent.
	uncovered   int
	uncoveredAt time.Time
}

// logProgress is the progress of one connection in one log.
type logProgress struct {
	asOf     catalog.Position // the position as of which the rooms were read; the client gets no live events up to here
	queuedTo catalog.Position // the highest position of a queued event
	covered  catalog.Position // the position in the last resume token; 0 before the greeting
	// resumePoint is the point of this log in the resume token that the client presented, and later the point of the
	// last missed event that was sent. The field known is true if the presented token contains this log.
	resumePoint Point
	known       bool
}

func newProgress(logs int) progress { return progress{awaited: logs, logs: make([]logProgress, logs)} }

// queued records that an event of a log was queued.
func (p *progress) queued(log int, position catalog.Position) {
	p.logs[log].queuedTo = max(p.logs[log].queuedTo, position)
}

// wrote records the resume token of a frame that was taken from the queue. The token is "" if the frame has none.
func (p *progress) wrote(token string) {
	if token != "" {
		p.written = token
	}
}

// Greeting contains the fields of the reply to connect that depend on the connection's progress.
type Greeting struct {
	ResumeToken string
	// NotRecovered lists the rooms whose missed events were not sent, sorted.
	NotRecovered []string
}

// Greet sets the function that returns the reply to connect. The reply is queued once the rooms of all logs are known
// and all delays (see DelayGreeting) have ended. It follows the missed events, and precedes every event that is queued
// later. Greet must be called before the connection is attached. The function greet is called while locks are held: it
// must not wait, nor call the hub.
func (c *Conn) Greet(greet func(Greeting) frame.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress.greet = greet
}

// DelayGreeting makes the greeting wait for n calls of Release. It must be called before the connection is attached.
func (c *Conn) DelayGreeting(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress.awaited += n
}

// Release ends one of the delays that were added by DelayGreeting.
func (c *Conn) Release() {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.arrived(positions)
}

// SetProgress records the progress from which a client resumes. The resume tokens that are sent between the client's
// missed events start from this progress.
func (c *Conn) SetProgress(p Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for log, owner := range c.hub.logs {
		c.progress.logs[log].resumePoint, c.progress.logs[log].known = p[owner]
	}
}

// Written returns the last resume token that the transport took from the queue. The client may not have read it.
func (c *Conn) Written() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.progress.written
}

// attached records that the rooms of a log are known as of a position.
func (c *Conn) attached(log int, asOf catalog.Position, notRecovered []string) {
	positions := c.hub.complete()
	c.mu.Lock()
	defer c.unlock()
	c.progress.logs[log].asOf = asOf
	c.progress.notRecovered = append(c.progress.notRecovered, notRecovered...)
	c.arrived(positions)
}

// arrived counts down the logs and the calls of Release for which the greeting waits, and queues the greeting after the
// last of them. The parameter positions is the result of Hub.complete.
func (c *Conn) arrived(positions []catalog.Position) {
	p := &c.progress
	if p.awaited--; p.awaited > 0 {
		return
	}
	first := c.hub.share(p.positions(c.hub.share(positions)))
	p.setCovered(first)
	if p.greet != nil {
		slices.Sort(p.notRecovered)
		token := first.token(c.User)
		text := c.encode(p.greet(Greeting{ResumeToken: token, NotRecovered: slices.Compact(p.notRecovered)}))
		c.push(item{own: &queued{text: text, reply: true, token: token}})
	}
	p.notRecovered, p.greet = nil, nil
}

// newer reports whether a new resume token would have a higher position in some log than the last token.
func (p *progress) newer(shared *sharedProgress) bool {
	for log := range p.logs {
		if s := &p.logs[log]; max(shared.positions[log], s.asOf) > s.covered {
			return true
		}
	}
	return false
}

// hasUncovered reports whether an event was queued whose position is above the position of its log in the last resume
// token.
func (p *progress) hasUncovered() bool {
	return slices.ContainsFunc(p.logs, func(l logProgress) bool { return l.queuedTo > l.covered })
}

func (p *progress) setCovered(by *sharedProgress) {
	for log := range p.logs {
		p.logs[log].covered = by.positions[log]
	}
}

// positions returns, for each log, the position up to which every event for the client was queued or written. The
// parameter shared is the progress of the fan-out, read a moment ago.
func (p *progress) positions(shared *sharedProgress) []catalog.Position {
	at := make([]catalog.Position, len(p.logs))
	for log := range at {
		s := &p.logs[log]
		at[log] = max(s.asOf, shared.positions[log], s.covered)
	}
	return at
}

// sharedProgress is a progress that many connections may have in common. It is encoded once, for the first resume token
// that contains it. It is not safe for concurrent use.
type sharedProgress struct {
	hub       *Hub
	positions []catalog.Position // by number of the log
	encoded   []byte
}

func (h *Hub) share(positions []catalog.Position) *sharedProgress {
	return &sharedProgress{hub: h, positions: positions}
}

func (p *sharedProgress) token(user string) string {
	if p.encoded == nil {
		progress := Progress{}
		for log, owner := range p.hub.logs {
			progress[owner] = Point{Position: p.positions[log], Incarnation: p.hub.shards[owner].incarnation.Load()}
		}
		p.encoded = progress.encode()
	}
	return p.hub.seal(user, p.encoded)
}

// complete returns the positions that Shard.Complete returns, by number of the log.
func (h *Hub) complete() []catalog.Position {
	positions := make([]catalog.Position, len(h.logs))
	for i, owner := range h.logs {
		positions[i] = h.shards[owner].Complete()
	}
	return positions
}

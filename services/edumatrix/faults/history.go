// Package faults tries to break the guarantees of the mesh. A population of clients sends commands to separate service
// processes, and records every command, answer and event. Meanwhile, processes, stores and connections are killed,
// frozen, cut and delayed. The plan of these faults is fixed, or derived from a seed. Afterwards Check compares the
// recorded history with the contents of the stores.
//
// The checker and the plans do no I/O and have fast tests. The files with the build tag integration run the mesh.
// docs/guarantees.md lists the guarantees, and `make faults` runs the package.
package faults

import (
	"slices"
	"sync"
	"time"
)

// Kinds of answers that a client gets for a command. The first four are final.
const (
	Committed   = "committed"
	Unchanged   = "unchanged"
	Refused     = "refused"
	Failed      = "failed"
	Queued      = "queued"
	Unavailable = "unavailable"
	// Nothing means that no answer arrived within answerTime (worker_test.go), although the connection stayed open.
	Nothing = "nothing"
)

// Answer is one answer that a client got for a command.
type Answer struct {
	At      time.Time
	Kind    string
	Code    string // the code of a refusal
	Stream  string
	Version int64
}

// Final reports whether the answer is the command's outcome.
func (a Answer) Final() bool {
	return a.Kind == Committed || a.Kind == Unchanged || a.Kind == Refused || a.Kind == Failed
}

// same reports whether two outcomes are equal. It compares the streams and versions only of commands that are committed
// or unchanged, because the outcome of a refused or failed command has no version.
func (a Answer) same(b Answer) bool {
	if a.Kind != b.Kind || a.Code != b.Code {
		return false
	}
	return a.Kind == Refused || a.Kind == Failed || a.Stream == b.Stream && a.Version == b.Version
}

// Command is a command of a user, with all answers to it.
type Command struct {
	Actor string
	ID    string
	Owner string // the service that decides it
	Type  string
	Text  string // the text in the command, which the event must contain
	Sent  time.Time
	Sends int

	Answers []Answer
}

// Outcome returns the first outcome that the client received.
func (c *Command) Outcome() (Answer, bool) {
	for _, a := range c.Answers {
		if a.Final() {
			return a, true
		}
	}
	return Answer{}, false
}

// Seen is an event as a client received it.
type Seen struct {
	At       time.Time
	Type     string
	Stream   string
	Version  int64
	ID       string
	Actor    string
	Redacted bool
	Text     string
}

// Session contains the events that a device received on one connection and on all later connections that resumed the
// session.
type Session struct {
	User   string
	Device string
	Dialed time.Time // the time at which the device dialed the first connection
	Ready  time.Time
	Ended  time.Time // the time at which the last connection ended; zero while there is a connection
	Why    string    // the reason why the last connection ended
	Events []Seen
	// Resumed is the number of times that the session resumed.
	Resumed int
	// Subscriptions are the authors to whom the session subscribes. Subscribed is the time of the subscription.
	Subscriptions []string
	Subscribed    time.Time
}

// NotRecovered is the type of a record among the events of a session. It means that the room in Stream was not
// recovered when the session resumed.
const NotRecovered = "not recovered"

// History contains the records of all clients. It is safe for concurrent use.
type History struct {
	mu       sync.Mutex
	commands []*Command
	sessions []*Session
	open     int // commands without an outcome
	news     chan struct{}
}

// NewHistory returns an empty History.
func NewHistory() *History { return &History{news: make(chan struct{})} }

// Send records that a command is sent, for the first time or again.
func (h *History) Send(c *Command) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.Sends++; c.Sends == 1 {
		c.Sent = time.Now()
		h.commands = append(h.commands, c)
		h.open++
		close(h.news)
		h.news = make(chan struct{})
	}
}

// Tell records an answer to a client.
func (h *History) Tell(c *Command, a Answer) {
	a.At = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := c.Outcome(); !known && a.Final() {
		h.open--
	}
	c.Answers = append(c.Answers, a)
}

// Sent returns the number of commands that were sent, and how many of them have no outcome yet. The channel is closed
// when the next new command is sent.
func (h *History) Sent() (sent, open int, more <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.commands), h.open, h.news
}

// Begin records a session whose first connection is ready.
func (h *History) Begin(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions = append(h.sessions, s)
}

// Received returns the number of events that a session has received.
func (h *History) Received(s *Session) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(s.Events)
}

// Resume records that a session has resumed, and which rooms were not recovered. The parameter before is the number of
// events that the session had received before it resumed. Resume inserts the records of the type NotRecovered after
// these events, and not at the end. The reason is that a gateway may send events before the reply to connect, and only
// the reply names the rooms.
func (h *History) Resume(s *Session, before int, notRecovered []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Ended, s.Why = time.Time{}, ""
	s.Resumed++
	var records []Seen
	for _, room := range notRecovered {
		records = append(records, Seen{At: time.Now(), Type: NotRecovered, Stream: room})
	}
	s.Events = slices.Insert(s.Events, before, records...)
}

// See records an event that a session has received.
func (h *History) See(s *Session, e Seen) {
	e.At = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Events = append(s.Events, e)
}

// End records that a connection has ended.
func (h *History) End(s *Session, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Ended, s.Why = time.Now(), why
}

// Saw returns the version of the last event of a stream that a session has received. It returns 0 if the session has
// received no event of the stream, or none after the last record of the type NotRecovered for this stream.
func (h *History) Saw(s *Session, stream string) (version int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range slices.Backward(s.Events) {
		if e.Stream == stream {
			return e.Version
		}
	}
	return 0
}

// Counts returns the numbers of sessions, of their resumptions, and of the events that they received, including records
// of the type NotRecovered.
func (h *History) Counts() (sessions, resumed, events int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		events += len(s.Events)
		resumed += s.Resumed
	}
	return len(h.sessions), resumed, events
}

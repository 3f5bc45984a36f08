// Package faults tries to break the guarantees of the mesh. A population of clients sends commands to separate service
// processes and records everything that it sent, received and saw, while processes, stores and connections are killed,
// frozen, cut and delayed by a plan that is derived from a seed. Afterwards Check judges the whole history against the
// contents of the stores.
//
// The checker and the plans are pure and have fast tests; the files with the build tag integration run the mesh.
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
	// Nothing: no answer came within answerTime, which is far longer than an answer may take.
	Nothing = "nothing"
)

// Answer is one answer that a client got for a command.
type Answer struct {
	At      time.Time
	Kind    string
	Code    string // if it is a refusal
	Stream  string
	Version int64
}

// Final reports whether the answer is the command's outcome.
func (a Answer) Final() bool {
	return a.Kind == Committed || a.Kind == Unchanged || a.Kind == Refused || a.Kind == Failed
}

// same reports whether two outcomes are equal. A refusal has no version.
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
	Text  string // the text in it, which its event must contain
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

// Session is what a device saw on one connection and on all later ones that resumed it.
type Session struct {
	User   string
	Device string
	Dialed time.Time // when the first connection was dialed
	Ready  time.Time
	Ended  time.Time // zero if it lasted to the end of the run
	Why    string    // why it ended
	Events []Seen
	// Resumed is the number of times that it resumed.
	Resumed int
	// Looks are the authors to whom it subscribes, and Looked is the time from which it does.
	Looks  []string
	Looked time.Time
}

// NotRecovered is the type under which a session records, among its events, a room that was not recovered when it
// resumed.
const NotRecovered = "not recovered"

// History is what all clients recorded. It is safe for concurrent use.
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

// Sent returns the number of commands sent, and of those without an outcome. The channel is closed when another
// command is sent.
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

// Resume records that a session has resumed, and which rooms were not recovered.
func (h *History) Resume(s *Session, tooFar []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Ended, s.Why = time.Time{}, ""
	s.Resumed++
	for _, room := range tooFar {
		s.Events = append(s.Events, Seen{At: time.Now(), Type: NotRecovered, Stream: room})
	}
}

// See records an event.
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

// Saw returns the newest version of a stream that a session has seen, 0 for none.
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

// Counts returns the numbers of sessions, of their resumptions, and of the events that they saw.
func (h *History) Counts() (sessions, resumed, events int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		events += len(s.Events)
		resumed += s.Resumed
	}
	return len(h.sessions), resumed, events
}

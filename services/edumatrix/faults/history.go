// Package faults tries to break what the mesh promises. A population of clients sends commands to separate service
// processes and records all it sent, was told and saw, while processes, stores and connections are killed, frozen, cut
// and delayed by a plan that follows from a seed. Afterwards Check judges the whole history against what the stores
// hold.
//
// The judge and the plans are pure and have fast tests; what runs the mesh is in the files with the build tag
// integration. docs/guarantees.md says what is promised, and `make faults` runs it.
package faults

import (
	"slices"
	"sync"
	"time"
)

// Kinds of what a client was told about a command. The first four are final.
const (
	Committed   = "committed"
	Unchanged   = "unchanged"
	Refused     = "refused"
	Failed      = "failed"
	Queued      = "queued"
	Unavailable = "unavailable"
	// Nothing is what a client notes that waited in vain, far longer than an answer may take.
	Nothing = "nothing"
)

// Answer is what a client was told about a command, once.
type Answer struct {
	At      time.Time
	Kind    string
	Code    string // of a refusal
	Stream  string
	Version int64
}

// Final says that the answer is the command's outcome.
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

// Command is a wish of a user, with everything that was heard of it.
type Command struct {
	Actor string
	ID    string
	Owner string // the service that decides it
	Type  string
	Text  string // the text in it, which its event has to carry
	Sent  time.Time
	Sends int

	Answers []Answer
}

// Outcome is the first outcome that was heard.
func (c *Command) Outcome() (Answer, bool) {
	for _, a := range c.Answers {
		if a.Final() {
			return a, true
		}
	}
	return Answer{}, false
}

// Seen is an event as a client got it.
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

// Session is what a device saw from a connection that began afresh, over all that resumed it.
type Session struct {
	User   string
	Device string
	Dialed time.Time // the first connection
	Ready  time.Time
	Ended  time.Time // zero: it lived to the end of the run
	Why    string    // it ended
	Events []Seen
	// Resumed is how often it came back.
	Resumed int
	// Looks are the authors that it looks at, since Looked.
	Looks  []string
	Looked time.Time
}

// TooFar is the type under which a session notes that it came back, and that of a room too much was missed.
const TooFar = "too far"

// History is what all clients recorded. It is safe for concurrent use.
type History struct {
	mu       sync.Mutex
	commands []*Command
	sessions []*Session
	open     int // commands without an outcome
	news     chan struct{}
}

// NewHistory makes an empty one.
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

// Tell records what a client was told.
func (h *History) Tell(c *Command, a Answer) {
	a.At = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := c.Outcome(); !known && a.Final() {
		h.open--
	}
	c.Answers = append(c.Answers, a)
}

// Sent counts the commands, and those of them without an outcome. The channel is closed when another one is sent.
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

// Resume records that a session has come back, and of which rooms it was not given what it missed.
func (h *History) Resume(s *Session, tooFar []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Ended, s.Why = time.Time{}, ""
	s.Resumed++
	for _, room := range tooFar {
		s.Events = append(s.Events, Seen{At: time.Now(), Type: TooFar, Stream: room})
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

// Saw is the newest version of a stream that a session has seen, 0 for none.
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

// Counts tells how many sessions there were, how often they came back, and how many events they saw.
func (h *History) Counts() (sessions, resumed, events int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		events += len(s.Events)
		resumed += s.Resumed
	}
	return len(h.sessions), resumed, events
}

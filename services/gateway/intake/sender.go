package intake

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Sender is one connection, or one HTTP request, that sends commands. It keeps the position in each owner's log of its
// own newest event, so that its queries can read its writes.
type Sender struct {
	intake *Intake

	mu        sync.Mutex
	waiters   map[*waiter]struct{}
	bytes     int
	positions map[string]int64
}

// NewSender makes a Sender, which has to be closed.
func (i *Intake) NewSender() *Sender {
	return &Sender{intake: i}
}

// waiter waits for the outcome of one command for one sender.
type waiter struct {
	key     key
	ctx     context.Context // with its trace; the end of the connection does not cancel a command
	command Command
	size    int
	sender  *Sender
	answer  func(Answer)
	timer   *time.Timer
	born    time.Time

	taken atomic.Bool // by Kafka

	// The lock is held from the decision to answer "queued" until that was answered, and while the outcome is answered:
	// "queued" must not follow the outcome, since the client would wait for another. It is taken before the intake's
	// lock.
	saying sync.Mutex

	// Guarded by the intake.
	waits bool // is in the table
	asks  bool // has no answer yet
	first bool // the outcome was the first answer
}

// Send publishes a command. The function answer is called from any goroutine, and must not wait. It gets the outcome,
// or the refusal of a command that was not accepted; or, after the patience, "queued", and then the outcome in a second
// call.
func (s *Sender) Send(ctx context.Context, c Command, answer func(Answer)) {
	w := &waiter{key: key{c.Declared.Owner, c.Actor, c.ID}, command: c, size: c.size(), sender: s, answer: answer,
		born: time.Now(), ctx: context.WithoutCancel(ctx)}
	if problem := s.intake.add(w); problem != nil {
		answer(Answer{CommandID: c.ID, Stream: c.Stream, Refusal: problem})
		return
	}
	w.arm(s.intake.options.Patience)
	s.intake.lines[c.Declared.Topic].put(w)
}

// Close removes the waiters of the sender. Commands that were accepted are still decided.
func (s *Sender) Close() {
	s.mu.Lock()
	waiters := slices.Collect(maps.Keys(s.waiters))
	s.mu.Unlock()
	for _, w := range waiters {
		if s.intake.remove(w) {
			w.disarm()
		}
		s.release(w)
	}
}

// Position returns the position of the newest own event in an owner's log.
func (s *Sender) Position(owner string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.positions[owner]
}

func (s *Sender) committed(r envelope.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.positions == nil {
		s.positions = map[string]int64{}
	}
	s.positions[r.Source] = max(s.positions[r.Source], r.Position)
}

func (s *Sender) reserve(w *waiter) *refusal.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiters) >= s.intake.options.SenderWaiting || s.bytes+w.size > s.intake.options.SenderBytes {
		return refusal.New(refusal.TooManyWaiting, "%d commands wait for their outcome on this connection", len(s.waiters))
	}
	if s.waiters == nil {
		s.waiters = map[*waiter]struct{}{}
	}
	s.waiters[w] = struct{}{}
	s.bytes += w.size
	return nil
}

func (s *Sender) release(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.waiters[w]; ok {
		delete(s.waiters, w)
		s.bytes -= w.size
		if len(s.waiters) == 0 {
			s.waiters = nil
		}
	}
}

func (w *waiter) arm(patience time.Duration) {
	w.sender.mu.Lock()
	defer w.sender.mu.Unlock()
	w.timer = time.AfterFunc(patience, w.timeOut)
}

func (w *waiter) disarm() {
	w.sender.mu.Lock()
	defer w.sender.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// timeOut answers a client after the patience: "queued", or "unavailable" for a command that Kafka does not have, which
// is removed; the client sends it again, with the same id.
func (w *waiter) timeOut() {
	defer w.sender.intake.options.Guard.Recover("outcome", nil)
	if w.taken.Load() {
		w.saying.Lock()
		defer w.saying.Unlock()
		if w.sender.intake.answered(w) {
			w.answer(refused(w.command, refusal.Queued, "taken, not decided yet; its outcome follows"))
		}
		return
	}
	if w.sender.intake.remove(w) {
		w.sender.release(w)
		w.answer(refused(w.command, refusal.Unavailable, "not known to be taken: send it again with the same id"))
	}
}

// finish answers with the outcome.
func (w *waiter) finish(a Answer) {
	w.disarm()
	w.sender.release(w)
	a.Late = !w.first
	defer w.sender.intake.options.Guard.Recover("outcome", nil)
	w.saying.Lock()
	defer w.saying.Unlock()
	w.answer(a)
}

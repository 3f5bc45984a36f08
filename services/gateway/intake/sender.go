package intake

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Sender is one connection, or one HTTP request, that sends commands. It records, for each owner's log, the highest
// position in an outcome of its commands (see envelope.Outcome), so that later queries see the effects of the commands.
type Sender struct {
	intake *Intake

	mu        sync.Mutex
	waiters   map[*waiter]struct{}
	bytes     int
	positions map[string]catalog.Position
}

// NewSender returns a Sender, which must be closed.
func (i *Intake) NewSender() *Sender {
	return &Sender{intake: i}
}

// waiter waits for the outcome of one command for one sender.
type waiter struct {
	key     key
	ctx     context.Context // carries the trace; the end of the connection does not cancel a command
	command Command
	size    int
	sender  *Sender
	answer  func(Answer)
	timer   *time.Timer
	born    time.Time

	taken atomic.Bool // whether Kafka has confirmed the command

	// saying is held while the client is answered with "queued" or with the outcome. Otherwise "queued" could follow
	// the outcome, and the client would wait for another outcome. This lock is taken before the intake's lock.
	saying sync.Mutex

	// The following fields are guarded by Intake.mu.
	waits bool // whether the waiter is in Intake.waiting
	asks  bool // whether the waiter has no answer yet
	first bool // whether the outcome was the first answer
}

// Send publishes a command. The function answer may be called from any goroutine, and must not block. It is called with
// the outcome, or with the refusal of a command that was not accepted. If Kafka has confirmed the command but there is
// no outcome within Options.Patience, the function is called with "queued", and later with the outcome. If Kafka has
// not confirmed the command by then, the function is called only with "unavailable". After Close, the function is not
// called for commands that still wait.
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

// Close removes the waiters of the sender. Commands that were accepted are still published if Kafka takes them within
// Options.Patience after Send.
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

// Position returns the highest position of an owner's log that an outcome of the sender's commands contains, or 0.
func (s *Sender) Position(owner string) catalog.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.positions[owner]
}

func (s *Sender) committed(r envelope.Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.positions == nil {
		s.positions = map[string]catalog.Position{}
	}
	s.positions[r.Source] = max(s.positions[r.Source], r.Position)
}

func (s *Sender) reserve(w *waiter) *refusal.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiters) >= s.intake.options.SenderWaiting || s.bytes+w.size > s.intake.options.SenderBytes {
		return refusal.New(refusal.TooManyWaiting, "%d commands of this connection have no outcome yet", len(s.waiters))
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

// timeOut answers a client that has no outcome within Options.Patience. If Kafka has confirmed the command, the answer
// is "queued". If not, the answer is "unavailable", the waiter is removed, and the client may send the command again
// with the same id.
func (w *waiter) timeOut() {
	defer w.sender.intake.options.Guard.Recover("outcome", nil)
	if w.taken.Load() {
		w.saying.Lock()
		defer w.saying.Unlock()
		if w.sender.intake.answered(w) {
			w.answer(refused(w.command, refusal.Queued, "accepted but not decided yet; the outcome follows"))
		}
		return
	}
	if w.sender.intake.remove(w) {
		w.sender.release(w)
		w.answer(refused(w.command, refusal.Unavailable, "delivery is not confirmed; send the command again with the same id"))
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

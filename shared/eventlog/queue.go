package eventlog

import (
	"errors"
	"slices"
	"sync"

	"github.com/edumatrix/interlinked/shared/bus"
)

// The bounds of one transaction.
const (
	maxMembers = 512
	maxEvents  = 4096
	maxBytes   = 16 << 20
)

// queue is who waits for the next transaction.
type queue struct {
	mu       sync.Mutex
	joining  []*member
	alone    []*member // failed before, or seem to be the retry of what failed
	closed   bool
	suspects suspects
	filled   chan struct{} // holds one when there may be somebody
}

func newQueue() *queue {
	return &queue{filled: make(chan struct{}, 1), suspects: suspects{keys: map[any]bool{}}}
}

var errStopped = bus.Away("event log", errors.New("it is stopping"))

func (q *queue) put(m *member) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errStopped
	}
	if m.alone = m.alone || m.prepared != nil && q.suspects.match(m.prepared); m.alone {
		q.alone = append(q.alone, m)
	} else {
		q.joining = append(q.joining, m)
	}
	q.wake()
	return nil
}

func (q *queue) wake() {
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// take removes who goes together into the next transaction, and one who goes alone into the one after.
func (q *queue) take() (together []*member, alone *member) {
	q.mu.Lock()
	defer q.mu.Unlock()
	events, bytes := 0, 0
	deciding := map[string]bool{}
	var later []*member
	for i, m := range q.joining {
		if len(together) == maxMembers || events >= maxEvents || bytes >= maxBytes {
			later = append(later, q.joining[i:]...)
			break
		}
		if m.ctx.Err() != nil {
			m.answer(Committed{}, m.ctx.Err())
			continue
		}
		if m.decide != nil {
			// Two that decide on one stream cannot both see it as they leave it.
			if slices.ContainsFunc(m.selections, func(s Selection) bool { return deciding[s.Stream] }) {
				later = append(later, m)
				continue
			}
			for _, s := range m.selections {
				deciding[s.Stream] = true
			}
		} else {
			events += m.prepared.events
			bytes += m.prepared.bytes
		}
		together = append(together, m)
	}
	q.joining = later
	if len(q.alone) > 0 {
		alone = q.alone[0]
		q.alone = q.alone[1:]
	}
	if len(q.joining)+len(q.alone) > 0 {
		q.wake()
	}
	return together, alone
}

// suspect remembers that a member failed, or took too long, by itself.
func (q *queue) suspect(p *prepared) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.suspects.add(p)
}

func (q *queue) suspected(p *prepared) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.suspects.match(p)
}

// close answers all who wait, and from now on everybody.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, m := range append(q.joining, q.alone...) {
		m.answer(Committed{}, errStopped)
	}
	q.joining, q.alone = nil, nil
}

// suspects are the ids of what failed, or took too long, by itself, the newest ten thousand.
type suspects struct {
	keys  map[any]bool
	order []any
}

func (s *suspects) add(p *prepared) {
	for _, key := range p.keys() {
		if s.keys[key] {
			continue
		}
		if len(s.order) == 10_000 {
			delete(s.keys, s.order[0])
			s.order = s.order[1:]
		}
		s.keys[key] = true
		s.order = append(s.order, key)
	}
}

func (s *suspects) match(p *prepared) bool {
	if len(s.keys) == 0 {
		return false
	}
	for _, key := range p.keys() {
		if s.keys[key] {
			return true
		}
	}
	return false
}

// keys are by what a Write is known again when it is tried again.
func (p *prepared) keys() (keys []any) {
	for _, e := range p.entries {
		if e.command && e.cause != "" {
			keys = append(keys, commandKey{e.actor, e.cause})
		}
	}
	if p.advance != nil {
		keys = append(keys, checkpointKey{p.advance.Of, p.advance.From})
	}
	return keys
}

package eventlog

import (
	"errors"
	"slices"
	"sync"

	"github.com/edumatrix/interlinked/shared/retry"
)

// A transaction gets no further write once it has maxWrites writes, maxEvents events, or events with maxBytes bytes.
// The events of writes that decide under the lock are not counted, because they do not exist yet.
const (
	maxWrites = 512
	maxEvents = 4096
	maxBytes  = 16 << 20
)

// queue holds the writes that wait for a transaction.
type queue struct {
	mu          sync.Mutex
	joining     []*pendingWrite
	alone       []*pendingWrite // in quarantine: each gets a transaction of its own
	closed      bool
	quarantined quarantine
	filled      chan struct{} // holds a value when the queue may be non-empty
}

func newQueue() *queue {
	return &queue{filled: make(chan struct{}, 1), quarantined: quarantine{keys: map[any]bool{}}}
}

var errStopped = retry.Unavailable("event log", errors.New("the log is stopping"))

func (q *queue) put(pw *pendingWrite) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errStopped
	}
	if pw.alone = pw.alone || pw.prepared != nil && q.quarantined.match(pw.prepared); pw.alone {
		q.alone = append(q.alone, pw)
	} else {
		q.joining = append(q.joining, pw)
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

// take removes from the queue the writes of the next transaction, and one write in quarantine for the transaction after
// that. It finishes writes whose context has ended.
func (q *queue) take() (together []*pendingWrite, alone *pendingWrite) {
	q.mu.Lock()
	defer q.mu.Unlock()
	events, bytes := 0, 0
	deciding := map[string]bool{}
	var later []*pendingWrite
	for i, pw := range q.joining {
		if len(together) == maxWrites || events >= maxEvents || bytes >= maxBytes {
			later = append(later, q.joining[i:]...)
			break
		}
		if pw.finishEnded() {
			continue
		}
		if pw.decide != nil {
			// Two writes that decide about the same stream cannot be in one transaction: the second decision would not
			// see the events of the first.
			if slices.ContainsFunc(pw.selections, func(s Selection) bool { return deciding[s.Stream] }) {
				later = append(later, pw)
				continue
			}
			for _, s := range pw.selections {
				deciding[s.Stream] = true
			}
		} else {
			events += pw.prepared.events
			bytes += pw.prepared.bytes
		}
		together = append(together, pw)
	}
	q.joining = later
	for alone == nil && len(q.alone) > 0 {
		if next := q.alone[0]; !next.finishEnded() {
			alone = next
		}
		q.alone = q.alone[1:]
	}
	if len(q.joining)+len(q.alone) > 0 {
		q.wake()
	}
	return together, alone
}

// quarantine records that a write failed because of its data, or exceeded MaxHold, in a transaction of its own.
func (q *queue) quarantine(p *prepared) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.quarantined.add(p)
}

func (q *queue) isQuarantined(p *prepared) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.quarantined.match(p)
}

// close finishes all waiting writes with an error. Later writes get the same error.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, pw := range append(q.joining, q.alone...) {
		pw.finish(Committed{}, errStopped)
	}
	q.joining, q.alone = nil, nil
}

// quarantine holds the newest 10,000 ids of writes that were alone in a transaction when it failed because of their
// data or exceeded MaxHold. When a write with one of these ids is tried again, it gets a transaction of its own.
type quarantine struct {
	keys  map[any]bool
	order []any
}

func (s *quarantine) add(p *prepared) {
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

func (s *quarantine) match(p *prepared) bool {
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

// keys returns the ids by which a Write is recognized when it is tried again.
func (p *prepared) keys() (keys []any) {
	for _, e := range p.entries {
		if e.command && e.cause != "" {
			keys = append(keys, commandKey{e.actor, e.cause})
		}
	}
	if key := p.inbox.Key(); key != nil {
		keys = append(keys, key)
	}
	return keys
}

// Package progress provides positions that rise, and that wake the goroutines waiting for them.
package progress

import (
	"sync"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Progress is a position that rises and wakes the goroutines that wait for it. It falls only when it is forgotten.
type Progress struct {
	mu       sync.Mutex
	position catalog.Position
	moved    chan struct{}
	era      int // number of times that the position was forgotten
	waiters  int
	wanted   chan struct{} // gets a value when a wait begins
}

// New returns a Progress at position 0.
func New() *Progress {
	return &Progress{moved: make(chan struct{}), wanted: make(chan struct{}, 1)}
}

// Reach raises the position to the given one, if that is higher.
func (p *Progress) Reach(position catalog.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raise(position)
}

// ReachIn raises the position to the given one, which was read in the given era, if that is higher. It does nothing if
// the position was forgotten since the era began.
func (p *Progress) ReachIn(era int, position catalog.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if era == p.era {
		p.raise(position)
	}
}

func (p *Progress) raise(position catalog.Position) {
	if position > p.position {
		p.position = position
		close(p.moved)
		p.moved = make(chan struct{})
	}
}

// Forget sets the position to 0, so that it has to be read again. Call Forget when the position may be too high, for
// example because the database may have lost the transaction that set the position.
func (p *Progress) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.position, p.era = 0, p.era+1
}

// Current returns the current era. Pass it to ReachIn with a position that is read after this call.
func (p *Progress) Current() (era int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.era
}

// Now returns the position, and a channel that is closed when the position rises.
func (p *Progress) Now() (position catalog.Position, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position, p.moved
}

// Wait registers a waiter for the position until the returned function is called.
func (p *Progress) Wait() (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiters++
	select {
	case p.wanted <- struct{}{}:
	default:
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiters--
	}
}

// Demand returns a channel that gets a value when a goroutine begins to wait, or at once if a goroutine waits already.
func (p *Progress) Demand() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.wanted:
	default:
	}
	if p.waiters > 0 {
		p.wanted <- struct{}{}
	}
	return p.wanted
}

// Set holds several positions, by name.
type Set struct {
	byName sync.Map

	mu     sync.Mutex
	opened int64 // number of connections that had been opened at the last call of Renew
}

// Of returns the position of a name.
func (p *Set) Of(name string) *Progress {
	v, ok := p.byName.Load(name)
	if !ok {
		v, _ = p.byName.LoadOrStore(name, New())
	}
	return v.(*Progress)
}

// Forget forgets all positions.
func (p *Set) Forget() {
	p.byName.Range(func(_, v any) bool {
		v.(*Progress).Forget()
		return true
	})
}

// Renew forgets all positions if connections to the database were opened since the last call. The parameter opened is
// the number of connections that have been opened so far.
func (p *Set) Renew(opened int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if opened != p.opened {
		p.opened = opened
		p.Forget()
	}
}

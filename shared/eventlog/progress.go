package eventlog

import (
	"sync"
)

// progress is a rising position that wakes those who wait for it. It falls only when it is forgotten.
type progress struct {
	mu       sync.Mutex
	position int64
	moved    chan struct{}
	era      int // number of times it was forgotten
	waiters  int
	wanted   chan struct{} // receives when a wait begins
}

func newProgress() *progress {
	return &progress{moved: make(chan struct{}), wanted: make(chan struct{}, 1)}
}

// reach raises the position, if it is higher.
func (p *progress) reach(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raise(position)
}

// reachIn does the same for a position that was read in an era, unless the position was forgotten since.
func (p *progress) reachIn(era int, position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if era == p.era {
		p.raise(position)
	}
}

func (p *progress) raise(position int64) {
	if position > p.position {
		p.position = position
		close(p.moved)
		p.moved = make(chan struct{})
	}
}

// forget sets the position to 0, so that it is read again, because the database may have lost the transaction that set
// it.
func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.position, p.era = 0, p.era+1
}

// current returns the current era. Pass it to reachIn with a position that is read after this call.
func (p *progress) current() (era int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.era
}

// now returns the position, and a channel that is closed when the position changes.
func (p *progress) now() (position int64, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position, p.moved
}

// wait registers a waiter for the position until the returned function is called.
func (p *progress) wait() (done func()) {
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

// demand returns a channel that receives when there is a waiter, at once if there is one already.
func (p *progress) demand() <-chan struct{} {
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

// progresses holds several positions, by name.
type progresses struct{ byName sync.Map }

func (p *progresses) of(name string) *progress {
	v, ok := p.byName.Load(name)
	if !ok {
		v, _ = p.byName.LoadOrStore(name, newProgress())
	}
	return v.(*progress)
}

// forget forgets all positions.
func (p *progresses) forget() {
	p.byName.Range(func(_, v any) bool {
		v.(*progress).forget()
		return true
	})
}

// waiting reports an unavailable dependency when the first waiter begins to wait for it, and its return when no waiter
// is left.
type waiting struct {
	report func(dependency string, err error)

	mu      sync.Mutex
	waiters map[string]map[string]bool // dependency -> names of the waiters
}

// set records that a waiter waits for a dependency, with the reason err, or that it continues, if err is nil.
func (w *waiting) set(who, dependency string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiters == nil {
		w.waiters = map[string]map[string]bool{}
	}
	if w.waiters[dependency] == nil {
		w.waiters[dependency] = map[string]bool{}
	}
	all := w.waiters[dependency]
	before := len(all)
	if err != nil {
		all[who] = true
	} else {
		delete(all, who)
	}
	if before == 0 && len(all) > 0 || before > 0 && len(all) == 0 {
		w.report(dependency, err)
	}
}

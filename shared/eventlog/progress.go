package eventlog

import "sync"

// progress is a position that rises, and wakes those who wait for that. It falls only when it is forgotten.
type progress struct {
	mu       sync.Mutex
	position int64
	moved    chan struct{}
	era      int // how often it was forgotten
	waiters  int
	wanted   chan struct{} // receives when somebody begins to wait
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

// reachIn does the same for a position that was read in an era, and does nothing if the position was forgotten since.
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

// forget has the position read again, because the database may have lost the transaction that it is known from.
func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.position, p.era = 0, p.era+1
}

// current returns the era, to be passed to reachIn with a position that is read from now on.
func (p *progress) current() (era int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.era
}

// now is the position, and what is closed when it is no longer that.
func (p *progress) now() (position int64, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position, p.moved
}

// wait counts somebody who waits for the position until the returned function is called.
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

// demand returns what receives when somebody waits; it receives at once if somebody does already.
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

// progresses are those of many things, by name.
type progresses struct{ byName sync.Map }

func (p *progresses) of(name string) *progress {
	v, ok := p.byName.Load(name)
	if !ok {
		v, _ = p.byName.LoadOrStore(name, newProgress())
	}
	return v.(*progress)
}

// forget has all of them read again.
func (p *progresses) forget() {
	p.byName.Range(func(_, v any) bool {
		v.(*progress).forget()
		return true
	})
}

// waiting tells once that a dependency is away, whoever notices, and once that nobody notices any more.
type waiting struct {
	tell func(dependency string, err error)

	mu      sync.Mutex
	waiters map[string]map[string]bool // dependency -> who waits for it
}

// set records that somebody waits, with the reason err, or goes on, if err is nil.
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
		w.tell(dependency, err)
	}
}

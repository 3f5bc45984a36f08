package eventlog

import "sync"

// progress is a position that only rises, and wakes who waits for that.
type progress struct {
	mu       sync.Mutex
	position int64
	moved    chan struct{}
}

func newProgress() *progress { return &progress{moved: make(chan struct{})} }

// reach raises the position, if it is higher.
func (p *progress) reach(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if position > p.position {
		p.position = position
		close(p.moved)
		p.moved = make(chan struct{})
	}
}

// now is the position, and what is closed when it is no longer that.
func (p *progress) now() (position int64, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position, p.moved
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

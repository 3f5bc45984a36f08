package eventlog

import "sync"

// waiting calls its function report with an error when the first waiter begins to wait for a dependency, and with nil
// when none of the dependency's waiters is left.
type waiting struct {
	report func(dependency string, err error)

	mu      sync.Mutex
	waiters map[string]map[string]bool // dependency -> names of the waiters
}

// set records that a waiter waits for a dependency because of err or, if err is nil, that it continues.
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

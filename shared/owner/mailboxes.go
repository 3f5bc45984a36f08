package owner

import "sync"

// mailboxes hands what arrives for one key to its worker in runs: all that came while the run before was under way, in
// order, never two runs of one key at once. So a busy stream costs one load and one commit per run instead of per
// message, and a quiet one waits for nobody.
type mailboxes[T any] struct {
	work func(key string, run []T)
	most int // items in a run

	mu      sync.Mutex
	waiting map[string][]T // a key is here as long as its worker runs
	workers sync.WaitGroup
}

func newMailboxes[T any](most int, work func(key string, run []T)) *mailboxes[T] {
	return &mailboxes[T]{work: work, most: most, waiting: map[string][]T{}}
}

// put queues an item in the order of the calls.
func (m *mailboxes[T]) put(key string, item T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue, running := m.waiting[key]
	m.waiting[key] = append(queue, item)
	if !running {
		m.workers.Add(1)
		go m.serve(key)
	}
}

func (m *mailboxes[T]) serve(key string) {
	defer m.workers.Done()
	for {
		run := m.next(key)
		if len(run) == 0 {
			return
		}
		m.work(key, run)
	}
}

// next takes what waits; with nothing left the key's worker has ended.
func (m *mailboxes[T]) next(key string) []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue := m.waiting[key]
	if len(queue) == 0 {
		delete(m.waiting, key)
		return nil
	}
	n := min(len(queue), m.most)
	run := queue[:n:n]
	m.waiting[key] = queue[n:]
	return run
}

// wait returns when all workers have ended; nothing may be put any more.
func (m *mailboxes[T]) wait() { m.workers.Wait() }

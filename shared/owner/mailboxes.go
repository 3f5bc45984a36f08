package owner

import "sync"

// mailboxes passes the items of each key to a worker in batches. A batch contains the items that wait when it begins,
// in order of arrival, but at most maxItems. Two batches of one key never run at the same time. The decider's keys are
// streams, and its items are commands. So a busy stream costs one load and one commit for each batch instead of each
// command, and a command of a quiet stream is decided without delay.
type mailboxes[T any] struct {
	work     func(key string, run []T)
	maxItems int // maximum number of items in a batch

	mu      sync.Mutex
	waiting map[string][]T // contains a key while its worker runs
	workers sync.WaitGroup
}

func newMailboxes[T any](maxItems int, work func(key string, run []T)) *mailboxes[T] {
	return &mailboxes[T]{work: work, maxItems: maxItems, waiting: map[string][]T{}}
}

// put queues an item behind the earlier items of its key.
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
		batch := m.next(key)
		if len(batch) == 0 {
			return
		}
		m.work(key, batch)
	}
}

// next removes and returns the items that wait, at most maxItems. If there are none, the key's worker ends.
func (m *mailboxes[T]) next(key string) []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue := m.waiting[key]
	if len(queue) == 0 {
		delete(m.waiting, key)
		return nil
	}
	n := min(len(queue), m.maxItems)
	batch := queue[:n:n]
	m.waiting[key] = queue[n:]
	return batch
}

// wait returns when all workers have ended. put must not be called after wait.
func (m *mailboxes[T]) wait() { m.workers.Wait() }

package owner

import (
	"sync"
	"testing"
)

func TestMailboxes_BatchesOfOneKeyRunOneAfterAnotherInOrder(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	got := map[string][]int{}
	running := map[string]bool{}
	m := newMailboxes(7, func(key string, run []int) {
		mu.Lock()
		if running[key] || len(run) > 7 {
			t.Errorf("%s: a second batch at the same time, or a batch of %d", key, len(run))
		}
		running[key] = true
		mu.Unlock()
		mu.Lock()
		got[key] = append(got[key], run...)
		running[key] = false
		mu.Unlock()
	})
	for i := range 1000 {
		m.put("a", i)
		m.put("b", i)
	}
	m.wait()
	for _, key := range []string{"a", "b"} {
		for i, v := range got[key] {
			if v != i {
				t.Fatalf("%s: item %d is %d", key, i, v)
			}
		}
		if len(got[key]) != 1000 {
			t.Fatalf("%s: %d of 1000", key, len(got[key]))
		}
	}
}

func TestMailboxes_OneKeyDoesNotWaitForAnother(t *testing.T) {
	t.Parallel()
	block, done := make(chan struct{}), make(chan struct{})
	m := newMailboxes(1, func(key string, _ []int) {
		if key == "stuck" {
			<-block
		} else {
			close(done)
		}
	})
	m.put("stuck", 1)
	m.put("free", 1)
	<-done
	close(block)
	m.wait()
}

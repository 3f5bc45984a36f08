package fanout

import (
	"context"
	"sync"
	"sync/atomic"
)

// topic is a topic that is read. A logged topic has partitions: as many as the broker has, and further ones when it
// grows.
type topic struct {
	name    string
	log     *reading
	logged  bool
	results bool

	partitions atomic.Pointer[[]*partition]

	mu     sync.Mutex
	counts map[int32]int32 // epoch → partitions by which the streams of its events were hashed; 0: as many as there were
	begun  chan struct{}   // closed and replaced when a partition begins an epoch
}

func (t *topic) all() []*partition {
	if list := t.partitions.Load(); list != nil {
		return *list
	}
	return nil
}

// partition returns a partition by its number, also one that was just added.
func (t *topic) partition(f *Fanout, number int32) *partition {
	list := t.all()
	if int(number) >= len(list) {
		t.grow(f, number+1, -1)
		list = t.all()
	}
	return list[number]
}

// grow adds partitions up to a number of them. Those that a fence adds begin at its position, since earlier events were
// in the others. The position of one that came without a fence (-1) is in its first record.
func (t *topic) grow(f *Fanout, count int32, position int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.all()
	if int(count) <= len(old) {
		return
	}
	list := append([]*partition(nil), old...)
	for number := int32(len(old)); number < count; number++ {
		p := newPartition(f, t, number)
		if position >= 0 {
			p.known, p.position = true, position
			p.complete.Store(position)
		} else {
			t.log.expect(1)
		}
		list = append(list, p)
	}
	t.partitions.Store(&list)
}

// beginEpoch notes that a partition has delivered all events of the epochs before, and how many partitions the epoch
// has.
func (t *topic) beginEpoch(p *partition, epoch, count int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if count > 0 {
		t.counts[epoch] = count
	}
	p.epoch.Store(epoch)
	close(t.begun)
	t.begun = make(chan struct{})
}

// countOf returns how many partitions an epoch had; as many as there are now where that is not known.
func (t *topic) countOf(epoch int32) int32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.counts[epoch]; n > 0 {
		return n
	}
	if epoch <= 1 { // of a relay that had no epochs
		return t.counts[0]
	}
	return int32(len(t.all()))
}

// await waits until the partitions of the epoch before have delivered all its events: the events of one stream may be
// in another partition from now on.
func (t *topic) await(ctx context.Context, epoch int32) error {
	n := t.countOf(epoch - 1)
	for {
		t.mu.Lock()
		begun := t.begun
		t.mu.Unlock()
		late := false
		for _, p := range t.all() {
			late = late || p.number < n && p.epoch.Load() < epoch
		}
		if !late {
			return nil
		}
		select {
		case <-begun:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

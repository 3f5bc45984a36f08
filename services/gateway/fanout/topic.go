package fanout

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// topic is a topic that the fan-out reads. If the topic belongs to a log, the field partitions contains an entry for
// each partition at the broker, and gets more entries when the topic grows.
type topic struct {
	name    string
	log     *logProgress
	logged  bool
	results bool

	partitions atomic.Pointer[[]*partition]

	mu     sync.Mutex
	counts map[int32]int32 // the known numbers of partitions by epoch; for epoch 0, the number when this gateway started
	begun  chan struct{}   // closed and replaced when a partition begins an epoch
}

func (t *topic) all() []*partition {
	if list := t.partitions.Load(); list != nil {
		return *list
	}
	return nil
}

// partition returns the partition with the given number. If there is none yet, it first adds all partitions up to this
// number.
func (t *topic) partition(f *Fanout, number int32) *partition {
	list := t.all()
	if int(number) >= len(list) {
		t.grow(f, number+1, -1)
		list = t.all()
	}
	return list[number]
}

// grow adds partitions until their number is the parameter count. Partitions that are added by a fence begin at the
// position of the fence, because earlier events were in the other partitions. Without a fence, the parameter position
// is -1, and a new partition begins at the position before its first record.
func (t *topic) grow(f *Fanout, count int32, position catalog.Position) {
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
			p.complete.Store(int64(position))
		} else {
			t.log.expect(1)
		}
		list = append(list, p)
	}
	t.partitions.Store(&list)
}

// beginEpoch records that a partition begins a new epoch, and how many partitions this epoch has. The caller has
// handled all events of the earlier epochs in the partition.
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

// countOf returns how many partitions an epoch had. If that is unknown, it returns the number at the start of this
// gateway for the epochs 0 and 1, and the current number for later epochs.
func (t *topic) countOf(epoch int32) int32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.counts[epoch]; n > 0 {
		return n
	}
	// Relays of earlier releases had no epochs. Assume that, while such a relay ran, the topic had as many partitions as
	// when this gateway started.
	if epoch <= 1 {
		return t.counts[0]
	}
	return int32(len(t.all()))
}

// await waits until every partition of the previous epoch has begun the given epoch. Each of them has then handled all
// its events of the earlier epochs. Without waiting, an event could be delivered before an earlier event of its stream,
// because the earlier event may be in another partition.
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

package hub

import (
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// item is one queued frame: either an event, whose frame connections share, or another frame (the field own).
type item struct {
	event   *Event
	own     *queued
	variant variant // of the event's frame
	// missed is the number of the log plus one if the item is a missed event, and 0 otherwise.
	missed int8
}

// queued is a frame that is not an event. The connections of one encoding that get the same signal share the frame.
type queued struct {
	text  []byte
	key   string // a newer frame with the same key replaces this frame
	spare bool   // dropped first under load
	reply bool   // does not count against Limits.Frames and Limits.Bytes
	token string // the resume token in the frame, or ""
	taken func() // called when the frame leaves the queue
}

func (it *item) text() []byte {
	if it.event != nil {
		return it.event.frame(it.variant)
	}
	return it.own.text
}

// key returns the key of the item, or "". A newer item with the same key takes the place of the item. Missed events
// have no key, because newer events must stay behind them.
func (it *item) key() string {
	switch {
	case it.event == nil:
		return it.own.key
	case it.missed == 0 && it.event.mergeable():
		return it.event.Stream
	}
	return ""
}

func (it *item) version() catalog.Version {
	if it.event == nil {
		return 0
	}
	return it.event.Version
}

// queue contains the frames that wait for one connection, in order.
type queue struct {
	items  []item         // items[head:] wait
	head   int            // index of the first item that waits
	first  int            // number of items[head]; items are numbered in order
	newest map[string]int // by key: number of the item that a newer one replaces
	took   time.Time      // when the transport took items last

	bytes        int // of all items that wait
	missed       int // bytes of missed events
	limited      int // number of waiting items that count against the limits; see item.counts
	limitedBytes int // bytes of these items
}

// smallQueue is the largest capacity that an empty queue keeps.
const smallQueue = 16

func (q *queue) len() int { return len(q.items) - q.head }

// push adds an item, unless it replaces a waiting item (see replace). If the queue is full (see full), push drops all
// items that can be spared. If the queue is still full, push drops the new item if that can be spared, else returns
// false. It returns the number of dropped items. The parameter afforded is for full.
func (q *queue) push(it item, l *Limits, afforded bool) (dropped int, ok bool) {
	key, size := it.key(), len(it.text())
	if q.replace(key, &it) {
		return 0, true
	}
	if it.counts() && q.full(size, l, afforded) {
		if dropped = q.dropSpare(); q.full(size, l, afforded) {
			if it.spare() {
				return dropped + 1, true
			}
			return dropped, false
		}
	}
	q.count(&it, 1)
	if key != "" {
		if q.newest == nil {
			q.newest = map[string]int{}
		}
		q.newest[key] = q.first + q.len()
	}
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, it)
	return dropped, true
}

// pop removes and returns the first item.
func (q *queue) pop() item {
	it := q.items[q.head]
	q.count(&it, -1)
	if key := it.key(); key != "" && q.newest[key] == q.first {
		delete(q.newest, key)
	}
	q.items[q.head] = item{}
	q.head++
	q.first++
	if q.head == len(q.items) {
		q.head = 0
		if q.items = q.items[:0]; cap(q.items) > smallQueue {
			q.items = nil
		}
		q.newest = nil
	}
	return it
}

// count adds an item to the totals if the parameter times is 1, and subtracts the item if it is -1.
func (q *queue) count(it *item, times int) {
	size := times * len(it.text())
	q.bytes += size
	switch {
	case it.missed > 0:
		q.missed += size
	case it.counts():
		q.limited += times
		q.limitedBytes += size
	}
}

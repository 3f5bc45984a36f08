package hub

import "time"

// item is one queued frame: an event, which other connections share, or a frame of this connection alone.
type item struct {
	event   *Event
	own     *queued
	variant variant // of the event's frame
	// missed is 0, or of a missed event the number of its log plus one.
	missed int8
}

// queued is a frame of one connection.
type queued struct {
	text  []byte
	key   string // a newer frame with the same key replaces it
	spare bool   // dropped first under load
	reply bool   // does not count against the limits
	token string // the resume token in it
	taken func() // called when the frame leaves the queue
}

func (it *item) text() []byte {
	if it.event != nil {
		return it.event.frame(it.variant)
	}
	return it.own.text
}

// key returns the key under which a newer item replaces this one; "" where none does. Missed events are not replaced:
// newer ones follow them.
func (it *item) key() string {
	switch {
	case it.event == nil:
		return it.own.key
	case it.missed == 0 && it.event.mergeable():
		return it.event.Stream
	}
	return ""
}

func (it *item) version() int64 {
	if it.event == nil {
		return 0
	}
	return it.event.Version
}

// queue has the frames that wait for one connection, in order.
type queue struct {
	items  []item         // those from head on wait
	head   int            // index of the first that waits
	first  int            // number of items[head]; items are numbered in order
	newest map[string]int // key → number of the item that a newer one replaces
	took   time.Time      // when the transport took items last

	bytes        int // of all items
	missed       int // bytes of missed events
	limited      int // items that count against the limits
	limitedBytes int
}

// smallQueue is the largest capacity that an empty queue keeps.
const smallQueue = 16

func (q *queue) len() int { return len(q.items) - q.head }

// push adds an item, or replaces an older one with its key. Where the limits have no room for the item, it drops those
// that can be spared, or else the item itself if that can be. It returns how many it dropped, and false where the
// limits have no room even so. Afforded reports whether the bound of the user leaves room for the item.
func (q *queue) push(it item, l *Limits, afforded bool) (dropped int, ok bool) {
	key, size := it.key(), len(it.text())
	if key != "" {
		if n, waits := q.newest[key]; waits {
			if old := &q.items[q.head+n-q.first]; old.version() <= it.version() {
				q.count(old, -1)
				q.count(&it, 1)
				*old = it
			}
			return 0, true
		}
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

// pop takes the first item.
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

// count adds an item to the sums, once or -1 times.
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

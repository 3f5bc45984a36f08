package hub

import "time"

// Limits bound the frames that wait for one connection and for all connections of one user. Missed events and answers
// to queries do not count for the connection, because they are bounded before they are queued. Zero values are the
// defaults.
type Limits struct {
	// Frames is how many frames may wait for a client that has read none for a while (see Stall); 1,024. Eight times as
	// many may wait for a client that reads.
	Frames int
	// Bytes is how many bytes may wait; 4 MiB.
	Bytes int
	// UserBytes is how many bytes may wait for all connections of one user together: frames, answers and missed events;
	// 32 MiB. Beyond that each connection has an equal share. A frame that exceeds it closes the connection, an answer
	// is refused, and missed events are not recovered.
	UserBytes int
	// Stall is how long a client may read nothing before Frames applies; 5 s.
	Stall time.Duration
}

func (l Limits) orDefault() Limits {
	if l.Frames == 0 {
		l.Frames = 1024
	}
	if l.Bytes == 0 {
		l.Bytes = 4 << 20
	}
	if l.UserBytes == 0 {
		l.UserBytes = 32 << 20
	}
	if l.Stall == 0 {
		l.Stall = 5 * time.Second
	}
	return l
}

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
	case it.missed == 0 && mergeable(it.event.Class):
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

// spare reports whether the item is dropped first under load.
func (it *item) spare() bool {
	if it.event == nil {
		return it.own.spare
	}
	return it.missed == 0 && it.event.state()
}

// counts reports whether the item counts against the limits.
func (it *item) counts() bool { return it.missed == 0 && (it.own == nil || !it.own.reply) }

// queue has the frames that wait for one connection, in order.
type queue struct {
	items  []item         // those from head on wait
	head   int            // index of the first that waits
	first  int            // number of items[head]; items are numbered in order
	newest map[string]int // key → number of the item that a newer one replaces
	frames int            // items that count against the limits
	bytes  int            // of those
	missed int            // bytes of missed events
	others int            // bytes of all other items, which are replies
	took   time.Time      // when the transport took items last
}

// smallQueue is the largest capacity that an empty queue keeps.
const smallQueue = 16

func (q *queue) len() int { return len(q.items) - q.head }

// push adds an item, or replaces an older one with its key. Beyond the limits it drops spare items. It returns how many
// it dropped, and false where the limits have no room for the item even so. Afforded reports whether the bound of the
// user leaves room for the item.
func (q *queue) push(it item, l *Limits, afforded bool) (dropped int, ok bool) {
	key, size := it.key(), len(it.text())
	if key != "" {
		if n, waits := q.newest[key]; waits {
			if old := &q.items[q.head+n-q.first]; old.version() <= it.version() {
				q.bytes += size - len(old.text())
				*old = it
			}
			return 0, true
		}
	}
	if it.counts() {
		if q.full(size, l, afforded) {
			dropped = q.dropSpare()
			if q.full(size, l, afforded) {
				return dropped, false
			}
		}
		q.frames++
		q.bytes += size
	} else {
		q.others += size
	}
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

// pushMissed adds missed events. They replace nothing, and do not count against the limits.
func (q *queue) pushMissed(m missed) {
	q.items = append(q.items, m.items...)
	q.missed += m.bytes
}

func (q *queue) full(more int, l *Limits, afforded bool) bool {
	switch {
	case q.frames == 0:
		return false
	case !afforded, q.bytes+more > l.Bytes || q.frames >= 8*l.Frames:
		return true
	}
	return q.frames >= l.Frames && time.Since(q.took) > l.Stall
}

// pop takes the first item.
func (q *queue) pop() item {
	it := q.items[q.head]
	q.forget(&it)
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

// forget subtracts an item from the sums.
func (q *queue) forget(it *item) {
	switch size := len(it.text()); {
	case it.counts():
		q.frames--
		q.bytes -= size
	case it.missed > 0:
		q.missed -= size
	default:
		q.others -= size
	}
}

// dropSpare drops the items that are worth least to a client that is behind: state and signals.
func (q *queue) dropSpare() (dropped int) {
	kept := q.items[:0]
	clear(q.newest)
	for _, it := range q.items[q.head:] {
		if it.spare() {
			q.forget(&it)
			dropped++
			continue
		}
		if key := it.key(); key != "" {
			q.newest[key] = q.first + len(kept)
		}
		kept = append(kept, it)
	}
	clear(q.items[len(kept):])
	q.items, q.head = kept, 0
	return dropped
}

// drain empties the queue, and returns the functions that are to be called when its frames leave it.
func (q *queue) drain() (taken []func()) {
	for _, it := range q.items[q.head:] {
		if it.own != nil && it.own.taken != nil {
			taken = append(taken, it.own.taken)
		}
	}
	*q = queue{first: q.first + q.len(), took: q.took}
	return taken
}

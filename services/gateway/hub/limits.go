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

// counts reports whether the item counts against the limits.
func (it *item) counts() bool { return it.missed == 0 && (it.own == nil || !it.own.reply) }

// full reports whether the limits have no room for an item of so many bytes. An item that waits alone is always
// admitted.
func (q *queue) full(more int, l *Limits, afforded bool) bool {
	switch {
	case q.limited == 0:
		return false
	case !afforded, q.limitedBytes+more > l.Bytes || q.limited >= 8*l.Frames:
		return true
	}
	return q.limited >= l.Frames && time.Since(q.took) > l.Stall
}

// spare reports whether the item is dropped first under load.
func (it *item) spare() bool {
	if it.event == nil {
		return it.own.spare
	}
	return it.missed == 0 && it.event.state()
}

// dropSpare drops the items that are worth least to a client that is behind: state and signals.
func (q *queue) dropSpare() (dropped int) {
	kept := q.items[:0]
	clear(q.newest)
	for _, it := range q.items[q.head:] {
		if it.spare() {
			q.count(&it, -1)
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

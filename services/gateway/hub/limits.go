package hub

import "time"

// Limits bound the frames that wait for one connection and for all connections of one user. Missed events, answers to
// queries, the reply to connect, and the frames "not_recovered" and "closing" do not count against Frames and Bytes,
// because they are bounded in other ways. Zero values stand for the defaults.
type Limits struct {
	// Frames is the maximum number of frames that wait for a client that has read nothing for longer than Stall. The
	// default is 1,024. Eight times as many may wait for a client that reads.
	Frames int
	// Bytes is the maximum number of bytes of the frames that wait for one connection. The default is 4 MiB. A frame
	// may be larger if no other frame that counts is waiting.
	Bytes int
	// UserBytes is the maximum number of bytes that wait for one user, over all connections and HTTP requests: frames,
	// answers and missed events. The default is 32 MiB. Beyond that, each connection may still hold an equal share of
	// UserBytes. A frame that exceeds the share is treated as if the connection's queue were full (see queue.push). If
	// the answer to a query on the connection exceeds the share, it is refused. If the missed events of a log exceed the
	// share, no room of the log is recovered. The answer to an HTTP request has no such share: beyond UserBytes, it is
	// refused.
	UserBytes int
	// Stall is how long a client may read nothing before the limit Frames applies. The default is 5 s. To a client that
	// has not read anything yet, Frames applies at once.
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

// counts reports whether the item counts against Limits.Frames and Limits.Bytes.
func (it *item) counts() bool { return it.missed == 0 && (it.own == nil || !it.own.reply) }

// full reports whether another item with the given number of bytes would exceed the limits. The parameter afforded is
// true if Limits.UserBytes allows the item. While no item that counts is waiting, full returns false for every item.
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

// dropSpare drops the items that a slow client can best do without: state, signals and heartbeats.
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

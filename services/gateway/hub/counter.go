package hub

// This file has what is special about events of class counter: each contains the whole value, so a client needs only
// the newest event of a stream, and the newest one that its own user has caused.

// ofOwnUser reports whether the item is an event of class counter that a command of the connection's user has caused.
// Such an event also contains values that concern this user alone, which later events of other users do not contain.
func (it *item) ofOwnUser() bool {
	return it.event != nil && !it.event.state() && it.variant.withCommand()
}

// replace replaces the waiting item with the same key by a newer one, and reports whether the new item is dealt with.
// It is not, if no item with this key waits, or if only the waiting item is of the connection's own user. A new item
// that is older than the waiting one is dropped.
func (q *queue) replace(key string, it *item) bool {
	n, waits := q.newest[key]
	if key == "" || !waits {
		return false
	}
	old := &q.items[q.head+n-q.first]
	if old.version() > it.version() {
		return true
	}
	if old.ofOwnUser() && !it.ofOwnUser() {
		return false
	}
	q.count(old, -1)
	q.count(it, 1)
	*old = *it
	return true
}

// deliverOwn queues an event for those connections in a room that belong to the user who caused the event. It returns
// their number.
func (sh *Shard) deliverOwn(e *Event, room string) (n int) {
	for _, c := range sh.hub.of(e.Actor) {
		s := &c.subscribers[sh.index]
		if m := sh.in(s, room); m != nil && s.attached && m.takes(e) {
			n += sh.queueEvent(e, s)
		}
	}
	return n
}

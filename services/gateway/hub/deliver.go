package hub

import "github.com/edumatrix/interlinked/proto/catalog"

// Deliver adds an event to the event buffer, and moves users into and out of the rooms that the event opens and closes
// for them. It queues the event once for each attached connection to which the event is new and that is in one of the
// event's rooms or belongs to one of these users. Of an event that is superseded, these are only the connections of the
// user who caused it. Deliver returns the number of connections for which it queued the event.
func (sh *Shard) Deliver(e *Event) (n int) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.buffer.add(e)
	sh.number++
	// Open and close rooms first, so that the members of a room do not change during the loop over them below.
	for _, m := range e.Opens {
		for _, user := range m.Users {
			for _, c := range sh.hub.of(user) {
				n += sh.open(e, &c.subscribers[sh.index], m.Room)
			}
		}
	}
	for _, m := range e.Closes {
		for _, user := range m.Users {
			for _, c := range sh.hub.of(user) {
				n += sh.close(e, &c.subscribers[sh.index], m.Room)
			}
		}
	}
	for _, name := range e.Rooms {
		if user, own := catalog.UserOfRoom(name); own && sh.log >= 0 {
			for _, c := range sh.hub.of(user) {
				if s := &c.subscribers[sh.index]; s.attached && s.takes(e) {
					n += sh.queueEvent(e, s)
				}
			}
		}
		if e.Superseded {
			n += sh.deliverOwn(e, name)
		} else if r := sh.rooms[name]; r != nil {
			for _, m := range r.members {
				if s := m.subscriber; s.attached && m.takes(e) {
					n += sh.queueEvent(e, s)
				}
			}
		}
	}
	if n > 0 {
		sh.hub.options.Metrics.Deliveries.Add(float64(n))
	}
	return n
}

// open puts a connection into a room that an event opens for the connection's user, and queues the event. It does
// neither if the method moves returns false. It returns 1 if it queued the event, else 0.
func (sh *Shard) open(e *Event, s *subscriber, room string) int {
	if !s.moves(e) {
		return 0
	}
	sh.join(s, room, e.Position).opened = true
	return sh.queueEvent(e, s)
}

// close is like open, but removes a connection from a room that an event closes for the connection's user.
func (sh *Shard) close(e *Event, s *subscriber, room string) int {
	if !s.moves(e) {
		return 0
	}
	if m := sh.in(s, room); m != nil {
		sh.leave(m)
	}
	return sh.queueEvent(e, s)
}

// queueEvent queues an event for a connection and returns 1, or returns 0 if the same delivery has queued it already.
// Callers call the method takes for every room, even if the event is queued, because takes records versions of state.
func (sh *Shard) queueEvent(e *Event, s *subscriber) int {
	if s.last == sh.number {
		return 0
	}
	s.last = sh.number
	if !e.state() {
		s.know(e.Position)
	}
	s.conn.queueEvent(e, sh.log)
	return 1
}

// moves reports whether an event that opens or closes rooms is new to an attached connection. State opens no rooms.
func (s *subscriber) moves(e *Event) bool { return s.attached && !e.state() && e.Position > s.asOf }

// takes reports whether an event in the user's own room is new to the connection. It records versions (see note).
func (s *subscriber) takes(e *Event) bool {
	return !e.state() && e.Position > s.asOf || e.state() && note(&s.newest, e)
}

// takes reports whether an event in the room is new to the connection. It records versions of state (see note).
func (m *membership) takes(e *Event) bool {
	return !e.state() && e.Position > m.asOf || e.state() && note(&m.newest, e)
}

// note reports whether a state event is newer than the newest noted one of its stream. If so, note records its version.
func note(newest *map[string]catalog.Version, e *Event) bool {
	if e.Version <= (*newest)[e.Stream] {
		return false
	}
	if *newest == nil {
		*newest = map[string]catalog.Version{}
	}
	(*newest)[e.Stream] = e.Version
	return true
}

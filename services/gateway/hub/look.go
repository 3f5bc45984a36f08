package hub

import (
	"slices"
	"time"
)

// Moment is a place among the events that a view has read, noted before an owner is asked.
type Moment uint64

// Now notes the present moment. It returns false while the connection does not know its rooms of this owner's log:
// looking comes after that.
func (v *View) Now(c *Conn) (Moment, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.seats[v.index]
	return Moment(v.recent.next()), s.gone || s.attached
}

// Looked is an owner's permission to look at a room.
type Looked struct {
	Room     string
	Asked    Moment   // before the owner was asked
	Position int64    // of the owner's log, as of which it answered
	Snapshot []*Event // what the room shows now
	Until    time.Time
}

// Look puts a connection into a room that it may look at, gives it what the room shows now and what was read since. It
// returns false when not all of that is kept any more: ask again.
func (v *View) Look(c *Conn, l Looked) bool {
	for _, e := range l.Snapshot {
		_, _ = e.Frame(c.variant(e)) // before the lock
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.seats[v.index]
	if s.gone {
		return true
	}
	inside := v.in(s, l.Room) != nil
	states, whole := v.recent.since(uint64(l.Asked))
	events, reaches := v.recent.after(l.Position)
	if !inside && (!whole || v.log >= 0 && !reaches) {
		return false
	}
	m := v.join(s, l.Room, l.Position)
	if v.log >= 0 {
		s.know(l.Position)
	}
	v.lookUntil(m, l.Until)
	for _, e := range l.Snapshot {
		if e.state() {
			note(&m.newest, e)
		}
		c.give(e, -1)
	}
	if inside {
		return true
	}
	for _, e := range slices.Concat(states, events) {
		if slices.Contains(e.Rooms, l.Room) && !v.elsewhere(s, e, l.Room) && m.takes(e) {
			v.give(e, s)
		}
	}
	return true
}

// elsewhere reports whether a connection has an event already by another room that it is in.
func (v *View) elsewhere(s *seat, e *Event, room string) bool {
	if v.log >= 0 && e.names(s.conn.User) && (e.state() || e.Position > s.floor) {
		return true
	}
	for _, r := range e.Rooms {
		if m := v.in(s, r); r != room && m != nil && (e.state() || e.Position > m.floor) {
			return true
		}
	}
	return false
}

// lookUntil lets a connection look at a room until then.
func (v *View) lookUntil(m *membership, until time.Time) {
	m.until = until.UnixNano()
	if !v.looking[m] {
		v.looking[m] = true
		m.seat.looking++
	}
}

// Unlook ends looking at a room. Members of it, by the log, stay in it.
func (v *View) Unlook(c *Conn, room string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.in(&c.seats[v.index], room); m != nil {
		v.unlook(m)
	}
}

func (v *View) unlook(m *membership) {
	if !v.looking[m] {
		return
	}
	v.looksNoMore(m)
	if !m.opened {
		v.leave(m)
	}
}

func (v *View) looksNoMore(m *membership) {
	if v.looking[m] {
		delete(v.looking, m)
		m.seat.looking--
	}
}

// Looker is a connection that looks at a room.
type Looker struct {
	Conn *Conn
	Room string
}

// Lookers lists all who look at something.
func (v *View) Lookers() []Looker {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]Looker, 0, len(v.looking))
	for m := range v.looking {
		all = append(all, Looker{m.seat.conn, m.room.name})
	}
	return all
}

// Looking counts the rooms that a connection looks at.
func (v *View) Looking(c *Conn) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return c.seats[v.index].looking
}

// LookedAt lists the rooms that a connection looks at.
func (v *View) LookedAt(c *Conn) (rooms []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.seats[v.index]
	if s.looking == 0 {
		return nil
	}
	for _, m := range s.rooms.some(len(s.rooms.few) + len(s.rooms.many)) {
		if v.looking[m] {
			rooms = append(rooms, m.room.name)
		}
	}
	return rooms
}

// Renew lets a connection look on.
func (v *View) Renew(l Looker, until time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.in(&l.Conn.seats[v.index], l.Room); m != nil && v.looking[m] {
		m.until = until.UnixNano()
	}
}

// Expire ends the looking that was not renewed, and lists whose.
func (v *View) Expire(now time.Time) (ended []Looker) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for m := range v.looking {
		if m.until < now.UnixNano() {
			ended = append(ended, Looker{m.seat.conn, m.room.name})
			v.unlook(m)
		}
	}
	return ended
}

package hub

import (
	"slices"
	"time"
)

// Moment is a place among the events that a view has read, noted before an owner is asked.
type Moment uint64

// Now notes the present moment. It says false while the connection does not know its rooms of this owner's log:
// looking comes after that.
func (v *View) Now(c *Conn) (Moment, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.seats[c]
	return Moment(v.recent.next()), s == nil || s.attached
}

// Looked is an owner's leave to look at a room.
type Looked struct {
	Room     string
	Asked    Moment   // before the owner was asked
	Position int64    // of the owner's log, as of which it answered
	Snapshot []*Event // what the room shows now
	Until    time.Time
}

// Look puts a connection into a room that it may look at, gives it what the room shows now and what was read since. It
// says false when not all of that is kept any more: ask again.
func (v *View) Look(c *Conn, l Looked) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.seats[c]
	if s == nil {
		return true
	}
	_, inside := s.rooms[l.Room]
	states, whole := v.recent.since(uint64(l.Asked))
	events, reaches := v.recent.after(l.Position)
	if !inside && (!whole || v.log >= 0 && !reaches) {
		return false
	}
	m := v.join(s, l.Room, l.Position)
	m.until = l.Until
	for _, e := range l.Snapshot {
		if e.state() {
			m.note(e)
		}
		c.give(e, -1)
	}
	if inside {
		return true
	}
	for _, e := range slices.Concat(states, events) {
		if slices.Contains(e.Rooms, l.Room) && !v.elsewhere(s, e, l.Room) && m.takes(e) {
			c.give(e, v.log)
		}
	}
	return true
}

// elsewhere says whether a connection has an event already by another room that it is in.
func (v *View) elsewhere(s *seat, e *Event, room string) bool {
	for _, r := range e.Rooms {
		if m := s.rooms[r]; r != room && m != nil && (e.state() || e.Position > m.floor) {
			return true
		}
	}
	return false
}

// Unlook ends looking at a room. Who is in it by the log stays.
func (v *View) Unlook(c *Conn, room string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.seats[c]; s != nil {
		v.unlook(s, room)
	}
}

func (v *View) unlook(s *seat, room string) bool {
	m := s.rooms[room]
	if m == nil || m.until.IsZero() {
		return false
	}
	if m.until = (time.Time{}); !m.opened {
		v.leave(s, room)
	}
	return true
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
	var all []Looker
	for c, s := range v.seats {
		for room, m := range s.rooms {
			if !m.until.IsZero() {
				all = append(all, Looker{c, room})
			}
		}
	}
	return all
}

// Looking counts the rooms that a connection looks at.
func (v *View) Looking(c *Conn) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	if s := v.seats[c]; s != nil {
		for _, m := range s.rooms {
			if !m.until.IsZero() {
				n++
			}
		}
	}
	return n
}

// Renew lets a connection look on.
func (v *View) Renew(l Looker, until time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.seats[l.Conn]; s != nil {
		if m := s.rooms[l.Room]; m != nil && !m.until.IsZero() {
			m.until = until
		}
	}
}

// Expire ends the looking that was not renewed, and lists whose.
func (v *View) Expire(now time.Time) []Looker {
	v.mu.Lock()
	defer v.mu.Unlock()
	var ended []Looker
	for c, s := range v.seats {
		for room, m := range s.rooms {
			if !m.until.IsZero() && m.until.Before(now) && v.unlook(s, room) {
				ended = append(ended, Looker{c, room})
			}
		}
	}
	return ended
}

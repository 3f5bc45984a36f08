package hub

import (
	"sync/atomic"
)

// room is one address with the connections in it.
type room struct {
	name    string
	members []*membership
}

// membership is one connection in one room.
type membership struct {
	room   *room
	seat   *seat
	index  int              // in the room's members
	floor  int64            // events up to here are known to the connection
	until  int64            // when looking ends unless renewed, in ns since 1970
	opened bool             // by the log, else only looked at
	newest map[string]int64 // of state: the newest version given, per stream
}

// seat is one connection's place in a view.
type seat struct {
	conn     *Conn
	attached bool
	gone     bool
	floor    int64
	seen     atomic.Int64 // the highest position given
	last     uint64       // number of the delivery that was applied last: an event in two rooms of a connection is given once
	rooms    roomSet
	looking  int              // rooms that it looks at
	newest   map[string]int64 // of state in the user's own room
}

// roomSet holds the rooms of a connection: in a slice while they are few, else in a map.
type roomSet struct {
	few  []*membership
	many map[*room]*membership
}

const maxFew = 8

func (s *roomSet) get(r *room) *membership {
	if s.many != nil {
		return s.many[r]
	}
	for _, m := range s.few {
		if m.room == r {
			return m
		}
	}
	return nil
}

func (s *roomSet) add(m *membership) {
	switch {
	case s.many != nil:
		s.many[m.room] = m
	case len(s.few) < maxFew:
		s.few = append(s.few, m)
	default:
		s.many = map[*room]*membership{m.room: m}
		for _, other := range s.few {
			s.many[other.room] = other
		}
		s.few = nil
	}
}

func (s *roomSet) remove(m *membership) {
	if s.many != nil {
		delete(s.many, m.room)
		return
	}
	for i, other := range s.few {
		if other == m {
			last := len(s.few) - 1
			s.few[i], s.few[last] = s.few[last], nil
			s.few = s.few[:last]
			return
		}
	}
}

// any returns one of them; nil when there is none.
func (s *roomSet) any() *membership {
	for _, m := range s.many {
		return m
	}
	if n := len(s.few); n > 0 {
		return s.few[n-1]
	}
	return nil
}

// takes reports whether an event is new to the connection in the room.
func (m *membership) takes(e *Event) bool {
	if !e.state() {
		return e.Position > m.floor
	}
	return note(&m.newest, e)
}

// note reports whether a state event is newer than what was given of its stream, and keeps it as the newest.
func note(newest *map[string]int64, e *Event) bool {
	if e.Version <= (*newest)[e.Stream] {
		return false
	}
	if *newest == nil {
		*newest = map[string]int64{}
	}
	(*newest)[e.Stream] = e.Version
	return true
}

// join puts a seat into a room; it keeps the floor of one that is in already.
func (v *View) join(s *seat, name string, floor int64) *membership {
	r := v.rooms[name]
	if r == nil {
		r = &room{name: name}
		v.rooms[name] = r
	} else if m := s.rooms.get(r); m != nil {
		return m
	}
	m := &membership{room: r, seat: s, floor: floor, index: len(r.members)}
	r.members = append(r.members, m)
	s.rooms.add(m)
	return m
}

func (v *View) leave(m *membership) {
	m.seat.rooms.remove(m)
	v.looksNoMore(m)
	r := m.room
	last := len(r.members) - 1
	r.members[m.index] = r.members[last]
	r.members[m.index].index = m.index
	r.members[last] = nil
	if r.members = r.members[:last]; last == 0 {
		delete(v.rooms, r.name)
	}
}

// in returns the membership of a seat in a room; nil when it is not in it.
func (v *View) in(s *seat, name string) *membership {
	r := v.rooms[name]
	if r == nil {
		return nil
	}
	return s.rooms.get(r)
}

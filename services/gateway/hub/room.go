package hub

import (
	"sync/atomic"
)

// room is one address with the connections in it.
type room struct {
	name    string
	members []*membership
	first   [1]*membership // most rooms have one connection on this gateway
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
	asOf     atomic.Int64 // of the rooms, or of what was given since; 0 before it is attached
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
		s.expect(1)
		s.many[m.room] = m
	}
}

// expect prepares for so many rooms more.
func (s *roomSet) expect(more int) {
	if s.many != nil || len(s.few)+more <= maxFew {
		return
	}
	s.many = make(map[*room]*membership, len(s.few)+more)
	for _, m := range s.few {
		s.many[m.room] = m
	}
	s.few = nil
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

// some returns at most n of them, and all where there are fewer.
func (s *roomSet) some(n int) []*membership {
	list := make([]*membership, 0, min(n, len(s.few)+len(s.many)))
	for _, m := range s.many {
		if len(list) == n {
			return list
		}
		list = append(list, m)
	}
	return append(list, s.few[:min(n-len(list), len(s.few))]...)
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
	return v.joinAs(new(membership), s, name, floor)
}

// joinAs is join with the memory for the membership, which it uses where the seat is not in the room yet.
func (v *View) joinAs(m *membership, s *seat, name string, floor int64) *membership {
	r := v.rooms[name]
	if r == nil {
		r = &room{name: name}
		r.members = r.first[:0]
		v.rooms[name] = r
	} else if m := s.rooms.get(r); m != nil {
		return m
	}
	*m = membership{room: r, seat: s, floor: floor, index: len(r.members)}
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

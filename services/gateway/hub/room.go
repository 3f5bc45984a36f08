package hub

import (
	"sync/atomic"
)

// room is one address and the connections in it.
type room struct {
	name    string
	members []*membership
	first   [1]*membership // the memory for members, since most rooms have one connection on this gateway
}

// membership is one connection in one room.
type membership struct {
	room       *room
	subscriber *subscriber
	index      int              // in the room's members
	asOf       int64            // the connection has the events up to here
	until      int64            // when the subscription ends unless it is renewed, in ns since 1970
	opened     bool             // by the log; else it is a subscription alone
	newest     map[string]int64 // of state: the newest version queued, by stream
}

// subscriber is one connection's part of a view: the rooms that it is in, as a member or by a subscription.
type subscriber struct {
	conn          *Conn
	attached      bool
	removed       bool
	asOf          int64
	known         atomic.Int64 // the position of the rooms, or of an event queued since; 0 before it is attached
	last          uint64       // number of the delivery applied last: an event in two rooms of a connection is queued once
	rooms         roomSet
	subscriptions int              // how many of the rooms are subscriptions
	newest        map[string]int64 // of state in the user's own room
}

// roomSet holds the rooms of a connection, in a slice while they are few and else in a map.
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

// expect prepares for more rooms.
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

// some returns at most n rooms, and all where there are fewer.
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
		return e.Position > m.asOf
	}
	return note(&m.newest, e)
}

// note reports whether a state event is newer than those queued of its stream, and notes its version as the newest.
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

// join puts a subscriber into a room, unless it is in it already. The subscriber has the events up to asOf.
func (v *View) join(s *subscriber, name string, asOf int64) *membership {
	return v.joinAs(new(membership), s, name, asOf)
}

// joinAs is join with the memory for the membership, which it uses if the subscriber is not in the room yet.
func (v *View) joinAs(m *membership, s *subscriber, name string, asOf int64) *membership {
	r := v.rooms[name]
	if r == nil {
		r = &room{name: name}
		r.members = r.first[:0]
		v.rooms[name] = r
	} else if m := s.rooms.get(r); m != nil {
		return m
	}
	*m = membership{room: r, subscriber: s, asOf: asOf, index: len(r.members)}
	r.members = append(r.members, m)
	s.rooms.add(m)
	return m
}

func (v *View) leave(m *membership) {
	m.subscriber.rooms.remove(m)
	v.endSubscription(m)
	r := m.room
	last := len(r.members) - 1
	r.members[m.index] = r.members[last]
	r.members[m.index].index = m.index
	r.members[last] = nil
	if r.members = r.members[:last]; last == 0 {
		delete(v.rooms, r.name)
	}
}

// in returns the membership of a subscriber in a room, or nil.
func (v *View) in(s *subscriber, name string) *membership {
	r := v.rooms[name]
	if r == nil {
		return nil
	}
	return s.rooms.get(r)
}

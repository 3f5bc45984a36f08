package hub

import "sync/atomic"

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

// subscriber is one connection's part of a shard: the rooms that it is in, as a member or by a subscription.
type subscriber struct {
	conn          *Conn
	attached      bool
	removed       bool
	asOf          int64
	known         atomic.Int64 // the position of the rooms, or of an event queued since; 0 before it is attached
	last          uint64       // number of the delivery that queued an event last, see Shard.queueEvent
	rooms         roomSet
	subscriptions int              // how many of the rooms are subscriptions
	newest        map[string]int64 // of state in the user's own room
}

// join puts a subscriber into a room, unless it is in it already. The subscriber has the events up to asOf.
func (sh *Shard) join(s *subscriber, name string, asOf int64) *membership {
	return sh.joinAs(new(membership), s, name, asOf)
}

// joinAs is like join, but stores the membership in m if the subscriber is not in the room yet.
func (sh *Shard) joinAs(m *membership, s *subscriber, name string, asOf int64) *membership {
	r := sh.rooms[name]
	if r == nil {
		r = &room{name: name}
		r.members = r.first[:0]
		sh.rooms[name] = r
	} else if m := s.rooms.get(r); m != nil {
		return m
	}
	*m = membership{room: r, subscriber: s, asOf: asOf, index: len(r.members)}
	r.members = append(r.members, m)
	s.rooms.add(m)
	return m
}

func (sh *Shard) leave(m *membership) {
	m.subscriber.rooms.remove(m)
	sh.endSubscription(m)
	r := m.room
	last := len(r.members) - 1
	r.members[m.index] = r.members[last]
	r.members[m.index].index = m.index
	r.members[last] = nil
	if r.members = r.members[:last]; last == 0 {
		delete(sh.rooms, r.name)
	}
}

// in returns the membership of a subscriber in a room, or nil.
func (sh *Shard) in(s *subscriber, name string) *membership {
	r := sh.rooms[name]
	if r == nil {
		return nil
	}
	return s.rooms.get(r)
}

package hub

import (
	"sync/atomic"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// room is one address and the connections in it.
type room struct {
	name    string
	members []*membership
	first   [1]*membership // initial memory for members; most rooms have one connection on this gateway
}

// membership is one connection in one room.
type membership struct {
	room       *room
	subscriber *subscriber
	index      int                        // in the room's members
	asOf       catalog.Position           // the connection has the room's events up to this position
	until      int64                      // when the subscription ends unless it is renewed, in ns since 1970
	opened     bool                       // whether the log opened the room for the user; false for a mere subscription
	newest     map[string]catalog.Version // the newest version of state that was queued, by stream
}

// subscriber is one connection's part of a shard: the rooms that the connection is in, by membership or subscription.
type subscriber struct {
	conn          *Conn
	attached      bool
	removed       bool
	asOf          catalog.Position
	known         atomic.Int64 // see Shard.AsOf
	last          uint64       // number of the delivery that last queued an event; see Shard.queueEvent
	rooms         roomSet
	subscriptions int                        // how many of the rooms are subscriptions
	newest        map[string]catalog.Version // like membership.newest, for the user's own room
}

// join puts a subscriber that has the events up to the position asOf into a room, unless it is already there, and
// returns its membership.
func (sh *Shard) join(s *subscriber, name string, asOf catalog.Position) *membership {
	return sh.joinAs(new(membership), s, name, asOf)
}

// joinAs is like join, but stores a new membership in the parameter m.
func (sh *Shard) joinAs(m *membership, s *subscriber, name string, asOf catalog.Position) *membership {
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

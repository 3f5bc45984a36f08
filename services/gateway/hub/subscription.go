package hub

import (
	"slices"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Moment is a point in the sequence of events that a shard has received. It is read before an owner is asked to
// authorize a subscription, so that Subscribe finds the state events that were delivered since then.
type Moment uint64

// Now returns the current moment. It returns false while the connection's rooms in this owner's log are not known,
// because subscribing has to wait for them. For a connection that was removed, it returns true, so that no caller waits
// for the rooms of that connection.
func (sh *Shard) Now(c *Conn) (Moment, bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := &c.subscribers[sh.index]
	return Moment(sh.buffer.next()), s.removed || s.attached
}

// Authorization is an owner's permission to subscribe to a room.
type Authorization struct {
	Room     string
	Asked    Moment           // the result of Now, read before the owner was asked
	Position catalog.Position // the position of the owner's log as of which the owner answered
	Snapshot []*Event         // the current state of the room
	Until    time.Time        // when the subscription ends unless it is renewed
}

// Subscribe puts a connection into a room that it may subscribe to, and queues the snapshot of the room. If the
// connection was not in the room yet, Subscribe also queues the room's state events that were delivered since the
// moment a.Asked, and the room's events of the log above a.Position. It returns false if the event buffer does not
// contain all of these events. The caller must then ask the owner again. Subscribe does nothing and returns true if the
// connection was removed.
func (sh *Shard) Subscribe(c *Conn, a Authorization) bool {
	for _, e := range a.Snapshot {
		_, _ = e.Frame(c.variant(e)) // encode before the lock is taken
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := &c.subscribers[sh.index]
	if s.removed {
		return true
	}
	inside := sh.in(s, a.Room) != nil
	states, allStates := sh.buffer.since(uint64(a.Asked))
	events, allEvents := sh.buffer.after(a.Position)
	if !inside && (!allStates || sh.log >= 0 && !allEvents) {
		return false
	}
	m := sh.join(s, a.Room, a.Position)
	if sh.log >= 0 {
		s.know(a.Position)
	}
	sh.subscribeUntil(m, a.Until)
	for _, e := range a.Snapshot {
		if e.state() {
			m.takes(e)
		}
		c.queueEvent(e, -1)
	}
	if inside {
		return true
	}
	for _, e := range slices.Concat(states, events) {
		if slices.Contains(e.Rooms, a.Room) && !sh.elsewhere(s, e, a.Room) && m.takes(e) {
			sh.number++
			sh.queueEvent(e, s)
		}
	}
	return true
}

// elsewhere reports whether a connection already got an event through another of the event's rooms.
func (sh *Shard) elsewhere(s *subscriber, e *Event, room string) bool {
	if sh.log >= 0 && e.names(s.conn.User) && (e.state() || e.Position > s.asOf) {
		return true
	}
	for _, r := range e.Rooms {
		if m := sh.in(s, r); r != room && m != nil && (e.state() || e.Position > m.asOf) {
			return true
		}
	}
	return false
}

// subscribeUntil makes a membership a subscription, which ends at the given time unless it is renewed.
func (sh *Shard) subscribeUntil(m *membership, until time.Time) {
	m.until = until.UnixNano()
	if !sh.subscriptions[m] {
		sh.subscriptions[m] = true
		m.subscriber.subscriptions++
	}
}

// Unsubscribe ends the subscription of a connection to a room. A connection that is also a member of the room stays in
// it.
func (sh *Shard) Unsubscribe(c *Conn, room string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if m := sh.in(&c.subscribers[sh.index], room); m != nil {
		sh.unsubscribe(m)
	}
}

func (sh *Shard) unsubscribe(m *membership) {
	if !sh.subscriptions[m] {
		return
	}
	sh.endSubscription(m)
	if !m.opened {
		sh.leave(m)
	}
}

// endSubscription removes a membership from the subscriptions, if it is one of them.
func (sh *Shard) endSubscription(m *membership) {
	if sh.subscriptions[m] {
		delete(sh.subscriptions, m)
		m.subscriber.subscriptions--
	}
}

// Subscription is a connection that is subscribed to a room.
type Subscription struct {
	Conn *Conn
	Room string
}

// Subscriptions lists all subscriptions.
func (sh *Shard) Subscriptions() []Subscription {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	all := make([]Subscription, 0, len(sh.subscriptions))
	for m := range sh.subscriptions {
		all = append(all, Subscription{m.subscriber.conn, m.room.name})
	}
	return all
}

// CountSubscriptions returns the number of rooms that a connection is subscribed to.
func (sh *Shard) CountSubscriptions(c *Conn) int {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return c.subscribers[sh.index].subscriptions
}

// SubscribedRooms lists the rooms that a connection is subscribed to.
func (sh *Shard) SubscribedRooms(c *Conn) (rooms []string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := &c.subscribers[sh.index]
	if s.subscriptions == 0 {
		return nil
	}
	for _, m := range s.rooms.some(len(s.rooms.few) + len(s.rooms.many)) {
		if sh.subscriptions[m] {
			rooms = append(rooms, m.room.name)
		}
	}
	return rooms
}

// Renew extends a subscription, if it has not ended.
func (sh *Shard) Renew(s Subscription, until time.Time) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if m := sh.in(&s.Conn.subscribers[sh.index], s.Room); m != nil && sh.subscriptions[m] {
		m.until = until.UnixNano()
	}
}

// Expire ends the subscriptions that were not renewed in time, and returns them.
func (sh *Shard) Expire(now time.Time) (ended []Subscription) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for m := range sh.subscriptions {
		if m.until < now.UnixNano() {
			ended = append(ended, Subscription{m.subscriber.conn, m.room.name})
			sh.unsubscribe(m)
		}
	}
	return ended
}

package hub

import (
	"slices"
	"time"
)

// Moment is a place among the events that a view has received, noted before an owner is asked.
type Moment uint64

// Now returns the present moment. It returns false while the connection does not know its rooms of this owner's log:
// subscribing has to wait until then.
func (v *View) Now(c *Conn) (Moment, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.subscribers[v.index]
	return Moment(v.buffer.next()), s.removed || s.attached
}

// Authorization is an owner's permission to subscribe to a room.
type Authorization struct {
	Room     string
	Asked    Moment   // before the owner was asked
	Position int64    // of the owner's log, as of which it answered
	Snapshot []*Event // what the room shows now
	Until    time.Time
}

// Subscribe puts a connection into a room that it may subscribe to, and queues the snapshot of the room and the events
// that were delivered since the owner was asked. It returns false when the view no longer keeps all of those: ask
// again.
func (v *View) Subscribe(c *Conn, a Authorization) bool {
	for _, e := range a.Snapshot {
		_, _ = e.Frame(c.variant(e)) // before the lock
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.subscribers[v.index]
	if s.removed {
		return true
	}
	inside := v.in(s, a.Room) != nil
	states, allStates := v.buffer.since(uint64(a.Asked))
	events, allEvents := v.buffer.after(a.Position)
	if !inside && (!allStates || v.log >= 0 && !allEvents) {
		return false
	}
	m := v.join(s, a.Room, a.Position)
	if v.log >= 0 {
		s.know(a.Position)
	}
	v.subscribeUntil(m, a.Until)
	for _, e := range a.Snapshot {
		if e.state() {
			m.takes(e)
		}
		c.give(e, -1)
	}
	if inside {
		return true
	}
	for _, e := range slices.Concat(states, events) {
		if slices.Contains(e.Rooms, a.Room) && !v.elsewhere(s, e, a.Room) && m.takes(e) {
			v.number++
			v.give(e, s)
		}
	}
	return true
}

// elsewhere reports whether a connection got an event already because of another room that it is in.
func (v *View) elsewhere(s *subscriber, e *Event, room string) bool {
	if v.log >= 0 && e.names(s.conn.User) && (e.state() || e.Position > s.asOf) {
		return true
	}
	for _, r := range e.Rooms {
		if m := v.in(s, r); r != room && m != nil && (e.state() || e.Position > m.asOf) {
			return true
		}
	}
	return false
}

// subscribeUntil makes a membership a subscription, which ends at a time unless it is renewed.
func (v *View) subscribeUntil(m *membership, until time.Time) {
	m.until = until.UnixNano()
	if !v.subscriptions[m] {
		v.subscriptions[m] = true
		m.subscriber.subscriptions++
	}
}

// Unsubscribe ends the subscription of a connection to a room. A member of the room, by the log, stays in it.
func (v *View) Unsubscribe(c *Conn, room string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.in(&c.subscribers[v.index], room); m != nil {
		v.unsubscribe(m)
	}
}

func (v *View) unsubscribe(m *membership) {
	if !v.subscriptions[m] {
		return
	}
	v.endSubscription(m)
	if !m.opened {
		v.leave(m)
	}
}

// endSubscription forgets that a membership is a subscription, if it is one.
func (v *View) endSubscription(m *membership) {
	if v.subscriptions[m] {
		delete(v.subscriptions, m)
		m.subscriber.subscriptions--
	}
}

// Subscription is a connection that is subscribed to a room.
type Subscription struct {
	Conn *Conn
	Room string
}

// Subscriptions lists all subscriptions.
func (v *View) Subscriptions() []Subscription {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]Subscription, 0, len(v.subscriptions))
	for m := range v.subscriptions {
		all = append(all, Subscription{m.subscriber.conn, m.room.name})
	}
	return all
}

// CountSubscriptions returns the number of rooms that a connection is subscribed to.
func (v *View) CountSubscriptions(c *Conn) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return c.subscribers[v.index].subscriptions
}

// SubscribedRooms lists the rooms that a connection is subscribed to.
func (v *View) SubscribedRooms(c *Conn) (rooms []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &c.subscribers[v.index]
	if s.subscriptions == 0 {
		return nil
	}
	for _, m := range s.rooms.some(len(s.rooms.few) + len(s.rooms.many)) {
		if v.subscriptions[m] {
			rooms = append(rooms, m.room.name)
		}
	}
	return rooms
}

// Renew extends a subscription, if it has not ended.
func (v *View) Renew(s Subscription, until time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.in(&s.Conn.subscribers[v.index], s.Room); m != nil && v.subscriptions[m] {
		m.until = until.UnixNano()
	}
}

// Expire ends the subscriptions that were not renewed in time, and returns them.
func (v *View) Expire(now time.Time) (ended []Subscription) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for m := range v.subscriptions {
		if m.until < now.UnixNano() {
			ended = append(ended, Subscription{m.subscriber.conn, m.room.name})
			v.unsubscribe(m)
		}
	}
	return ended
}

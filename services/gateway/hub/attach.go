package hub

import (
	"runtime"
	"slices"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Attachment is an owner's answer about the rooms of a connection, as of a position of the owner's log.
type Attachment struct {
	Rooms        []string         // rooms that the log has opened for the user
	Subscribed   []string         // rooms to which Attach subscribes the connection; the owner allows it
	Until        time.Time        // when these subscriptions end unless they are renewed
	Position     catalog.Position // the position of the log as of which the rooms were read
	Missed       []*Event         // missed events up to Position, ascending by position
	NotRecovered []string         // rooms whose missed events are not in Missed
}

// roomsPerTurn is the number of rooms that one connection joins or leaves before the shard's lock is released, so that
// events are delivered in between.
const roomsPerTurn = 128

// Attach puts a connection into its rooms. It then queues the missed events, followed by the connection's events above
// a.Position that Deliver has already handled. If Conn.expect does not allow the missed events, Attach leaves them out,
// and no room is recovered. Attach returns false if the event buffer does not contain all delivered events above
// a.Position. The caller must then ask the owner again. Attach does nothing and returns true if the connection is
// already attached, or was removed.
func (sh *Shard) Attach(c *Conn, a Attachment) bool {
	s := &c.subscribers[sh.index]
	missed := c.missedOf(a.Missed, sh.log) // encode before the lock is taken
	if missed.bytes > 0 && c.expect(missed.bytes) {
		defer c.expectNoMore(missed.bytes)
	} else if missed.bytes > 0 {
		missed.items, missed.bytes = nil, 0
		a.Missed, a.NotRecovered = nil, AllRooms(c.User, slices.Concat(a.Rooms, a.Subscribed))
	}
	if !sh.joinAll(s, a) {
		return true
	}
	if sh.attach(s, a, missed, c.encodeNotRecovered(a.NotRecovered)) {
		return true
	}
	sh.leaveAll(s)
	return false
}

// AllRooms returns the given rooms of a user and the user's own room. These are the rooms that are not recovered if the
// client gets no missed events of a log at all.
func AllRooms(user string, rooms []string) []string {
	return append([]string{catalog.UserRoom(user)}, rooms...)
}

// joinAll puts a subscriber into its rooms before the subscriber is attached. It returns false if the subscriber is
// already attached, or was removed.
func (sh *Shard) joinAll(s *subscriber, a Attachment) bool {
	names := slices.Concat(a.Rooms, a.Subscribed)
	joined := make([]membership, len(names))
	for from := 0; ; from += roomsPerTurn {
		sh.mu.Lock()
		if s.attached || s.removed {
			sh.mu.Unlock()
			return false
		}
		if from == 0 {
			s.rooms.expect(len(names))
		}
		to := min(from+roomsPerTurn, len(names))
		for i := from; i < to; i++ {
			if m := sh.joinAs(&joined[i], s, names[i], a.Position); i < len(a.Rooms) {
				m.opened = true
			} else {
				sh.subscribeUntil(m, a.Until)
			}
		}
		sh.mu.Unlock()
		if to == len(names) {
			return true
		}
		runtime.Gosched()
	}
}

func (sh *Shard) attach(s *subscriber, a Attachment, missed missed, notRecovered []byte) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s.removed {
		return true
	}
	newer, whole := sh.buffer.after(a.Position)
	if !whole {
		return false
	}
	s.attached, s.asOf = true, a.Position
	s.know(a.Position)
	c := s.conn
	c.catchUp(missed, sh.log, notRecovered)
	if n := len(a.Missed); n > 0 {
		sh.hub.options.Metrics.Deliveries.Add(float64(n))
	}
	for _, e := range newer {
		sh.replay(e, s)
	}
	c.attached(sh.log, a.Position, a.NotRecovered)
	return true
}

// replay delivers an event to one connection that is being attached. Deliver has handled the event before.
func (sh *Shard) replay(e *Event, s *subscriber) {
	sh.number++
	user := s.conn.User
	for _, m := range e.Opens {
		if slices.Contains(m.Users, user) {
			sh.open(e, s, m.Room)
		}
	}
	for _, m := range e.Closes {
		if slices.Contains(m.Users, user) {
			sh.close(e, s, m.Room)
		}
	}
	if e.names(user) && s.takes(e) {
		sh.queueEvent(e, s)
	}
	for _, name := range e.Rooms {
		if m := sh.in(s, name); m != nil && m.takes(e) {
			sh.queueEvent(e, s)
		}
	}
}

// names reports whether a user's own room is among the rooms of the event.
func (e *Event) names(user string) bool {
	for _, room := range e.Rooms {
		if name, own := catalog.UserOfRoom(room); own && name == user {
			return true
		}
	}
	return false
}

// leaveAll removes a subscriber from all rooms.
func (sh *Shard) leaveAll(s *subscriber) {
	for more := true; more; {
		sh.mu.Lock()
		some := s.rooms.some(roomsPerTurn)
		for _, m := range some {
			sh.leave(m)
		}
		more = len(some) == roomsPerTurn
		sh.mu.Unlock()
		if more {
			runtime.Gosched()
		}
	}
}

// exit removes a connection from the shard.
func (sh *Shard) exit(c *Conn) {
	s := &c.subscribers[sh.index]
	sh.mu.Lock()
	s.attached, s.removed = false, true
	sh.mu.Unlock()
	sh.leaveAll(s)
}

// missed contains the missed events of one connection in one log, ready to be queued.
type missed struct {
	items []item
	bytes int
	last  catalog.Position // the highest position
}

// missedOf encodes missed events, and leaves out the events that cannot be encoded. It yields to other goroutines from
// time to time, because there may be many events.
func (c *Conn) missedOf(events []*Event, log int) (m missed) {
	for i, e := range events {
		if (i+1)%encodedAtOnce == 0 {
			runtime.Gosched()
		}
		v := c.variant(e)
		if text, err := e.Frame(v); err == nil {
			m.items = append(m.items, item{event: e, variant: v, missed: int8(log + 1)})
			m.bytes += len(text)
			m.last = max(m.last, e.Position)
		}
	}
	return m
}

// encodeNotRecovered returns the frames "not_recovered" of the rooms, joined for one message.
func (c *Conn) encodeNotRecovered(rooms []string) []byte {
	if len(rooms) == 0 {
		return nil
	}
	frames := make([][]byte, len(rooms))
	for i, room := range rooms {
		frames[i] = c.encode(frame.NotRecovered(room))
	}
	return frame.Join(c.encoding, frames)
}

// catchUp queues the missed events of a log. The frames "not_recovered" come first: the client must have them before it
// gets a resume token whose position is above the events that were left out.
func (c *Conn) catchUp(m missed, log int, notRecovered []byte) {
	c.mu.Lock()
	defer c.unlock()
	if c.reason != nil {
		return
	}
	if len(notRecovered) > 0 {
		c.push(item{own: &queued{text: notRecovered, reply: true}})
	}
	c.progress.queued(log, m.last)
	c.queue.pushMissed(m)
	c.ring()
}

// pushMissed appends missed events. They replace no other items. Limits.Frames and Limits.Bytes do not apply to them.
// The caller has checked Limits.UserBytes and Options.Missed with Conn.expect.
func (q *queue) pushMissed(m missed) {
	q.items = append(q.items, m.items...)
	q.bytes += m.bytes
	q.missed += m.bytes
}

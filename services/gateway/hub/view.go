package hub

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// View is the part of the hub that belongs to one owner: the connections in each of the owner's rooms, the position of
// the owner's log as of which each connection got its rooms, and the event buffer.
//
// One lock makes attaching and subscribing atomic with respect to delivery: an event is either in the answer that a
// connection started with, or is queued for it afterwards, once. Work that takes long for a connection with many rooms
// is done in slices, between which events are delivered; a subscriber gets none before it is attached.
type View struct {
	hub   *Hub
	owner string
	index int // of its subscriber in each connection
	log   int // the number of the owner's log; -1 where it has none

	complete    atomic.Int64
	incarnation atomic.Uint32 // of the log, as resume tokens hold it

	mu            sync.Mutex
	number        uint64 // of deliveries
	rooms         map[string]*room
	subscriptions map[*membership]bool
	buffer        eventBuffer
	history       string          // incarnation of the log
	former        map[string]bool // incarnations that it had before
}

func newView(h *Hub, owner string, index, log, bound int) *View {
	return &View{hub: h, owner: owner, index: index, log: log, rooms: map[string]*room{},
		subscriptions: map[*membership]bool{}, buffer: eventBuffer{bound: bound}}
}

// SetComplete notes that all events of the log up to a position were delivered.
func (v *View) SetComplete(position int64) {
	for {
		old := v.complete.Load()
		if position <= old || v.complete.CompareAndSwap(old, position) {
			return
		}
	}
}

// Complete returns the position up to which all events of the log were delivered, or lay before this gateway began.
func (v *View) Complete() int64 { return v.complete.Load() }

// SetIncarnation notes the incarnation of the log that events are read from. When it changes, the log may have lost
// events that clients got: the buffer is cleared and all connections are closed, so that clients resume with tokens of
// the incarnation before.
func (v *View) SetIncarnation(incarnation string, position int64) {
	v.mu.Lock()
	if incarnation == "" || incarnation == v.history || v.former[incarnation] {
		v.mu.Unlock()
		return
	}
	restored := v.history != ""
	if restored {
		if v.former == nil {
			v.former = map[string]bool{}
		}
		v.former[v.history] = true
		v.buffer.clear(position)
	}
	v.history = incarnation
	v.mu.Unlock()
	if restored {
		v.hub.closeAll(Restored)
	}
	v.incarnation.Store(IncarnationOf(incarnation))
}

// Skip notes that events up to a position are not delivered. It clears the buffer and closes all connections, so that
// clients resume and get the events that they missed.
func (v *View) Skip(position int64) {
	v.mu.Lock()
	v.buffer.clear(position)
	v.mu.Unlock()
	v.hub.closeAll(Interrupted)
}

// Deliver queues an event for every connection in its rooms, moves users in and out of the rooms that it opens and
// closes, and returns the number of connections that it was queued for.
func (v *View) Deliver(e *Event) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.buffer.add(e)
	v.number++
	var few [4]*room
	rooms := v.roomsOf(e, few[:0])
	n := 0
	// The users that the event moves come first. It moves nobody else, so the loop below does not change the members.
	for _, m := range e.Opens {
		n += v.applyTo(e, m.Users, rooms)
	}
	for _, m := range e.Closes {
		n += v.applyTo(e, m.Users, rooms)
	}
	own := false
	for _, name := range e.Rooms {
		if user, ok := catalog.UserOfRoom(name); ok {
			own = true
			for _, c := range v.hub.of(user) {
				n += v.apply(e, &c.subscribers[v.index], rooms)
			}
		}
	}
	for _, r := range rooms {
		single := len(rooms) == 1 && !own
		for _, m := range r.members {
			switch s := m.subscriber; {
			case !s.attached || s.last == v.number:
			case single:
				if m.takes(e) {
					v.give(e, s)
					n++
				}
			default:
				n += v.apply(e, s, rooms)
			}
		}
	}
	if n > 0 {
		v.hub.options.Metrics.Deliveries.Add(float64(n))
	}
	return n
}

// roomsOf lists the rooms of an event that have members on this gateway, each once.
func (v *View) roomsOf(e *Event, rooms []*room) []*room {
	for _, name := range e.Rooms {
		if r := v.rooms[name]; r != nil && !slices.Contains(rooms, r) {
			rooms = append(rooms, r)
		}
	}
	return rooms
}

func (v *View) applyTo(e *Event, users []string, rooms []*room) (n int) {
	for _, user := range users {
		for _, c := range v.hub.of(user) {
			n += v.apply(e, &c.subscribers[v.index], rooms)
		}
	}
	return n
}

// apply moves one connection in and out of rooms as an event requires, queues the event for it if it is in one of the
// event's rooms, and returns the number of frames queued: 0 or 1. An event is applied to a connection once.
func (v *View) apply(e *Event, s *subscriber, rooms []*room) int {
	if !s.attached || s.last == v.number {
		return 0
	}
	s.last = v.number
	given := v.log >= 0 && e.names(s.conn.User) && s.takes(e)
	for _, r := range rooms {
		if m := s.rooms.get(r); m != nil && m.takes(e) {
			given = true
		}
	}
	if !e.state() && e.Position > s.asOf {
		for _, o := range e.Opens {
			if slices.Contains(o.Users, s.conn.User) {
				v.join(s, o.Room, e.Position).opened = true
				given = true
			}
		}
		for _, c := range e.Closes {
			if slices.Contains(c.Users, s.conn.User) {
				if m := v.in(s, c.Room); m != nil {
					v.leave(m)
				}
				given = true
			}
		}
	}
	if !given {
		return 0
	}
	v.give(e, s)
	return 1
}

func (v *View) give(e *Event, s *subscriber) {
	if !e.state() {
		s.know(e.Position)
	}
	s.conn.give(e, v.log)
}

// takes reports whether an event in the user's own room is new to the connection.
func (s *subscriber) takes(e *Event) bool {
	if !e.state() {
		return e.Position > s.asOf
	}
	return note(&s.newest, e)
}

// AsOf returns the position of the log as of which a connection knows it: that of its rooms, or the highest one that
// was queued for it since. The answer to its next query has to contain everything up to there. It is 0 while the
// connection does not know its rooms, and where the log was empty then.
func (v *View) AsOf(c *Conn) int64 { return c.subscribers[v.index].known.Load() }

// know raises the position as of which the connection knows the log. It is called under the view's lock.
func (s *subscriber) know(position int64) {
	if position > s.known.Load() {
		s.known.Store(position)
	}
}

// Attachment is an owner's answer for a connection, as of a position of its log.
type Attachment struct {
	Rooms        []string  // open to the user
	Subscribed   []string  // rooms that the connection may subscribe to
	Until        time.Time // the end of these subscriptions, unless they are renewed
	Position     int64
	Missed       []*Event // missed events up to the position, in order
	NotRecovered []string // rooms whose missed events are not among them
}

// slice is how many rooms of one connection are joined or left before events are delivered again.
const slice = 128

// Attach puts a connection into its rooms, and queues the missed events and then those that were delivered since the
// position. It returns false when the buffer does not reach back to the position: ask the owner again.
func (v *View) Attach(c *Conn, a Attachment) bool {
	s := &c.subscribers[v.index]
	missed := c.missedOf(a.Missed, v.log) // before the lock
	if missed.bytes > 0 && c.expect(missed.bytes) {
		defer c.expectNoMore(missed.bytes)
	} else if missed.bytes > 0 {
		missed.items, missed.bytes = nil, 0
		a.Missed, a.NotRecovered = nil, AllRooms(c.User, slices.Concat(a.Rooms, a.Subscribed))
	}
	if !v.joinAll(s, a) {
		return true
	}
	if v.attach(s, a, missed, c.encodeNotRecovered(a.NotRecovered)) {
		return true
	}
	v.leaveAll(s)
	return false
}

// AllRooms lists the rooms of a user together with the user's own room: where it is not known which events of a log a
// client has, none of them are recovered.
func AllRooms(user string, rooms []string) []string {
	return append([]string{catalog.UserRoom(user)}, rooms...)
}

// joinAll puts a subscriber into its rooms before it is attached. It returns false when the subscriber is attached
// already, or was removed.
func (v *View) joinAll(s *subscriber, a Attachment) bool {
	names := slices.Concat(a.Rooms, a.Subscribed)
	joined := make([]membership, len(names))
	for from := 0; ; from += slice {
		v.mu.Lock()
		if s.attached || s.removed {
			v.mu.Unlock()
			return false
		}
		if from == 0 {
			s.rooms.expect(len(names))
		}
		to := min(from+slice, len(names))
		for i := from; i < to; i++ {
			if m := v.joinAs(&joined[i], s, names[i], a.Position); i < len(a.Rooms) {
				m.opened = true
			} else {
				v.subscribeUntil(m, a.Until)
			}
		}
		v.mu.Unlock()
		if to == len(names) {
			return true
		}
		runtime.Gosched()
	}
}

func (v *View) attach(s *subscriber, a Attachment, missed missed, notRecovered []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.removed {
		return true
	}
	newer, whole := v.buffer.after(a.Position)
	if !whole {
		return false
	}
	s.attached, s.asOf = true, a.Position
	s.know(a.Position)
	c := s.conn
	c.catchUp(missed, v.log, notRecovered)
	if n := len(a.Missed); n > 0 {
		v.hub.options.Metrics.Deliveries.Add(float64(n))
	}
	var few [4]*room
	for _, e := range newer {
		v.number++
		v.apply(e, s, v.roomsOf(e, few[:0]))
	}
	c.attached(v.log, a.Position, a.NotRecovered)
	return true
}

// leaveAll takes a subscriber out of all rooms.
func (v *View) leaveAll(s *subscriber) {
	for more := true; more; {
		v.mu.Lock()
		some := s.rooms.some(slice)
		for _, m := range some {
			v.leave(m)
		}
		more = len(some) == slice
		v.mu.Unlock()
		if more {
			runtime.Gosched()
		}
	}
}

// exit takes a connection out of the view.
func (v *View) exit(c *Conn) {
	s := &c.subscribers[v.index]
	v.mu.Lock()
	s.attached, s.removed = false, true
	v.mu.Unlock()
	v.leaveAll(s)
}

// Begin notes that the fan-out begins above a position: no event up to there is delivered.
func (v *View) Begin(position int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.buffer.dropped = max(v.buffer.dropped, position)
}

// BufferedAfter returns the position above which the buffer has all events that were delivered.
func (v *View) BufferedAfter() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.buffer.dropped
}

// Buffered lists the events of the log that were delivered above a position. It returns false when the buffer has not
// all of them.
func (v *View) Buffered(after int64) ([]*Event, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.buffer.after(after)
}

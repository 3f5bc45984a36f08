package hub

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// View is what this gateway knows of one owner: who is in which room, as of which position of the owner's log each
// connection was told its rooms (its floor), and the recent events.
//
// One lock makes attaching and looking atomic against delivery: an event is either in the answer that a connection
// started with, or is given to it afterwards, once. Work that takes long for a connection with many rooms is done in
// slices, between which events are delivered: a seat gets nothing before it is attached.
type View struct {
	hub   *Hub
	owner string
	index int // of its seat in each connection
	log   int // its number; -1: the owner has none

	complete    atomic.Int64
	incarnation atomic.Uint32 // of the log, as resume tokens hold it

	mu      sync.Mutex
	number  uint64 // of deliveries
	rooms   map[string]*room
	looking map[*membership]bool
	recent  recent
	history string          // incarnation of the log
	former  map[string]bool // incarnations that it had before
}

func newView(h *Hub, owner string, index, log, bound int) *View {
	return &View{hub: h, owner: owner, index: index, log: log, rooms: map[string]*room{},
		looking: map[*membership]bool{}, recent: recent{bound: bound}}
}

// SetComplete notes that all events up to a position of the log were delivered.
func (v *View) SetComplete(position int64) {
	for {
		old := v.complete.Load()
		if position <= old || v.complete.CompareAndSwap(old, position) {
			return
		}
	}
}

// Complete is the position up to which all events of the log were delivered, or lay before this gateway began.
func (v *View) Complete() int64 { return v.complete.Load() }

// SetIncarnation notes which incarnation of the log events are read of. When it changes, the log may have lost some that
// clients were given: what is kept is forgotten, and all clients are told to connect again, with resume tokens that say what
// they have.
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
		v.recent.clear(position)
	}
	v.history = incarnation
	v.mu.Unlock()
	if restored {
		v.hub.closeAll(Restored)
	}
	v.incarnation.Store(IncarnationOf(incarnation))
}

// Skip notes that events up to a position are not delivered. It forgets the events that it keeps, and tells all clients
// to connect again: they get what they missed when they come back.
func (v *View) Skip(position int64) {
	v.mu.Lock()
	v.recent.clear(position)
	v.mu.Unlock()
	v.hub.closeAll(Interrupted)
}

// Deliver gives an event to every connection that is to get it, moves them in and out of the rooms that it opens and
// closes, and returns how many got it.
func (v *View) Deliver(e *Event) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.recent.add(e)
	v.number++
	var few [4]*room
	rooms := v.roomsOf(e, few[:0])
	n := 0
	// First those whom it moves: nobody else is moved, so that the members stay as they are while they are gone through.
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
				n += v.apply(e, &c.seats[v.index], rooms)
			}
		}
	}
	for _, r := range rooms {
		single := len(rooms) == 1 && !own
		for _, m := range r.members {
			switch s := m.seat; {
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

// roomsOf lists those of an event's rooms that somebody is in, each once.
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
			n += v.apply(e, &c.seats[v.index], rooms)
		}
	}
	return n
}

// apply does to one connection what an event does, once; it returns 1 when the event was given.
func (v *View) apply(e *Event, s *seat, rooms []*room) int {
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
	if !e.state() && e.Position > s.floor {
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

func (v *View) give(e *Event, s *seat) {
	if !e.state() {
		s.know(e.Position)
	}
	s.conn.give(e, v.log)
}

// takes reports whether an event in the user's own room is new to the connection.
func (s *seat) takes(e *Event) bool {
	if !e.state() {
		return e.Position > s.floor
	}
	return note(&s.newest, e)
}

// AsOf is the position of the log as of which a connection knows it: that of its rooms, or the highest one that it was
// given since. The answer to whatever it asks next has to contain everything up to there. It is 0 while the connection
// does not know its rooms, and where the log was empty then.
func (v *View) AsOf(c *Conn) int64 { return c.seats[v.index].asOf.Load() }

// know raises the position as of which the connection knows the log. It is called under the view's lock.
func (s *seat) know(position int64) {
	if position > s.asOf.Load() {
		s.asOf.Store(position)
	}
}

// Attach puts a connection into the rooms that the owner answered for its user as of a position, gives it what was read
// above that, and goes on from there. It returns false when this gateway no longer keeps all of that: ask again.
func (v *View) Attach(c *Conn, rooms []string, position int64) bool {
	return v.Resume(c, Return{Rooms: rooms, Position: position})
}

// Return is what a connection comes back to.
type Return struct {
	Rooms    []string // that are open as of the position
	Looked   []string // that it may look at, until then
	Until    time.Time
	Position int64
	Missed   []*Event // up to the position, in order
	TooFar   []string // rooms of which it was not given what it missed
}

// slice is how many rooms of one connection are joined or left before events are delivered again.
const slice = 128

// Resume is Attach for a connection that was away: it is given what it missed first.
func (v *View) Resume(c *Conn, r Return) bool {
	s := &c.seats[v.index]
	missed := c.missedOf(r.Missed, v.log) // before the lock
	if missed.bytes > 0 && c.expect(missed.bytes) {
		defer c.expectNoMore(missed.bytes)
	} else if missed.bytes > 0 {
		missed.items, missed.bytes = nil, 0
		r.Missed, r.TooFar = nil, Everything(c.User, slices.Concat(r.Rooms, r.Looked))
	}
	if !v.joinAll(s, r) {
		return true
	}
	if v.attach(s, r, missed, c.notRecovered(r.TooFar)) {
		return true
	}
	v.leaveAll(s)
	return false
}

// Everything lists all rooms of somebody: of a log of which it is not known what they have, nothing is recovered.
func Everything(user string, rooms []string) []string {
	return append([]string{catalog.UserRoom(user)}, rooms...)
}

// joinAll puts a seat into its rooms before it is attached. It returns false when the seat is attached, or gone.
func (v *View) joinAll(s *seat, r Return) bool {
	names := slices.Concat(r.Rooms, r.Looked)
	joined := make([]membership, len(names))
	for from := 0; ; from += slice {
		v.mu.Lock()
		if s.attached || s.gone {
			v.mu.Unlock()
			return false
		}
		if from == 0 {
			s.rooms.expect(len(names))
		}
		to := min(from+slice, len(names))
		for i := from; i < to; i++ {
			if m := v.joinAs(&joined[i], s, names[i], r.Position); i < len(r.Rooms) {
				m.opened = true
			} else {
				v.lookUntil(m, r.Until)
			}
		}
		v.mu.Unlock()
		if to == len(names) {
			return true
		}
		runtime.Gosched()
	}
}

func (v *View) attach(s *seat, r Return, missed missed, notRecovered []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.gone {
		return true
	}
	newer, whole := v.recent.after(r.Position)
	if !whole {
		return false
	}
	s.attached, s.floor = true, r.Position
	s.know(r.Position)
	c := s.conn
	c.catchUp(missed, v.log, notRecovered)
	if n := len(r.Missed); n > 0 {
		v.hub.options.Metrics.Deliveries.Add(float64(n))
	}
	var few [4]*room
	for _, e := range newer {
		v.number++
		v.apply(e, s, v.roomsOf(e, few[:0]))
	}
	c.attached(v.log, r.Position, r.TooFar)
	return true
}

// leaveAll takes a seat out of all rooms.
func (v *View) leaveAll(s *seat) {
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
	s := &c.seats[v.index]
	v.mu.Lock()
	s.attached, s.gone = false, true
	v.mu.Unlock()
	v.leaveAll(s)
}

// Begin notes that the fan-out begins above a position: nothing up to there is delivered.
func (v *View) Begin(position int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.recent.gone = max(v.recent.gone, position)
}

// Reach is the position above which all that was delivered is kept.
func (v *View) Reach() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.recent.gone
}

// Recent lists what was delivered of the log above a position; it returns false when not all of that is kept.
func (v *View) Recent(after int64) ([]*Event, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.recent.after(after)
}

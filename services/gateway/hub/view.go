package hub

import (
	"slices"
	"sync"
	"time"
)

// View is what this gateway knows of one owner: who is in which room, as of which position of the owner's log each
// connection was told its rooms (its floor), and the recent events.
//
// One lock makes attaching and looking atomic against delivery: an event is either in the answer that a connection
// started with, or is given to it afterwards, once.
type View struct {
	owner   string
	log     int // its number; -1: the owner has none
	metrics *Metrics

	mu     sync.Mutex
	seats  map[*Conn]*seat
	rooms  map[string]map[*seat]*membership
	recent recent
}

// seat is one connection's place in a view.
type seat struct {
	conn     *Conn
	attached bool
	floor    int64
	rooms    map[string]*membership
	last     *Event // applied last: an event in two rooms of a connection is given once
	seen     int64  // the highest position given
}

// membership is one connection in one room.
type membership struct {
	opened bool      // by the log, else only looked at
	until  time.Time // when looking ends, unless renewed
	floor  int64
	newest map[string]int64 // of state: the newest version given, per stream
}

func newView(owner string, log, bound int, m *Metrics) *View {
	return &View{owner: owner, log: log, metrics: m, seats: map[*Conn]*seat{},
		rooms: map[string]map[*seat]*membership{}, recent: recent{bound: bound}}
}

// Deliver gives an event to every connection that is to get it, moves them in and out of the rooms that it opens and
// closes, and says how many got it.
func (v *View) Deliver(e *Event) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.recent.add(e)
	n := 0
	apply := func(room string) {
		for s := range v.rooms[room] {
			if s.last != e {
				s.last = e
				n += v.apply(e, s)
			}
		}
	}
	for _, m := range e.Opens {
		for _, user := range m.Users {
			apply("user:" + user)
		}
	}
	for _, m := range e.Closes {
		for _, user := range m.Users {
			apply("user:" + user)
		}
	}
	for _, room := range e.Rooms {
		apply(room)
	}
	v.metrics.Deliveries.Add(float64(n))
	return n
}

// apply is what an event does to one connection; it says 1 when it was given.
func (v *View) apply(e *Event, s *seat) int {
	given := false
	for _, room := range e.Rooms {
		if m := s.rooms[room]; m != nil && m.takes(e) {
			given = true
		}
	}
	if s.attached && !e.state() && e.Position > s.floor {
		for _, o := range e.Opens {
			if slices.Contains(o.Users, s.conn.User) {
				v.join(s, o.Room, e.Position).opened = true
				given = true
			}
		}
		for _, c := range e.Closes {
			if slices.Contains(c.Users, s.conn.User) {
				v.leave(s, c.Room)
				given = true
			}
		}
	}
	if !given {
		return 0
	}
	if !e.state() {
		s.seen = max(s.seen, e.Position)
	}
	s.conn.give(e, v.log)
	return 1
}

// Seen is the highest position of the log that a connection was given: whoever asks next has to find that there.
func (v *View) Seen(c *Conn) int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.seats[c]; s != nil {
		return s.seen
	}
	return 0
}

// takes says whether an event is new to the one in the room.
func (m *membership) takes(e *Event) bool {
	if !e.state() {
		return e.Position > m.floor
	}
	if e.Version <= m.newest[e.Stream] {
		return false
	}
	m.note(e)
	return true
}

func (m *membership) note(e *Event) {
	if m.newest == nil {
		m.newest = map[string]int64{}
	}
	m.newest[e.Stream] = max(m.newest[e.Stream], e.Version)
}

// Attach puts a connection into the rooms of its user as the owner told them as of a position, gives it what was read
// above that, and goes on from there. It says false when this gateway no longer keeps all of that: ask again.
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

// Resume is Attach for a connection that was away: it is given what it missed first.
func (v *View) Resume(c *Conn, r Return) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.seats[c]
	if s == nil || s.attached {
		return true
	}
	newer, whole := v.recent.after(r.Position)
	if !whole {
		return false
	}
	s.attached, s.floor = true, r.Position
	v.join(s, "user:"+c.User, r.Position).opened = true
	for _, room := range r.Rooms {
		v.join(s, room, r.Position).opened = true
	}
	for _, room := range r.Looked {
		v.join(s, room, r.Position).until = r.Until
	}
	if n := len(r.Missed); n > 0 {
		c.catchUp(r.Missed, v.log)
		s.seen = r.Missed[n-1].Position
		v.metrics.Deliveries.Add(float64(n))
	}
	for _, e := range newer {
		v.apply(e, s)
	}
	c.attached(v.log, r.Position, r.TooFar)
	return true
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

// Recent lists what was delivered of the log above a position; it says false when not all of that is kept.
func (v *View) Recent(after int64) ([]*Event, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.recent.after(after)
}

// join keeps the floor of one who is in already.
func (v *View) join(s *seat, room string, floor int64) *membership {
	if m := s.rooms[room]; m != nil {
		return m
	}
	m := &membership{floor: floor}
	s.rooms[room] = m
	if v.rooms[room] == nil {
		v.rooms[room] = map[*seat]*membership{}
	}
	v.rooms[room][s] = m
	return m
}

func (v *View) leave(s *seat, room string) {
	delete(s.rooms, room)
	delete(v.rooms[room], s)
	if len(v.rooms[room]) == 0 {
		delete(v.rooms, room)
	}
}

func (v *View) enter(c *Conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seats[c] = &seat{conn: c, attached: v.log < 0, rooms: map[string]*membership{}}
}

func (v *View) exit(c *Conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.seats[c]
	if s == nil {
		return
	}
	for room := range s.rooms {
		v.leave(s, room)
	}
	delete(v.seats, c)
}

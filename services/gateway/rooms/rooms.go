// Package rooms asks the owners which rooms connections may be in: all rooms of a user when it connects (Attach), and
// single rooms that a client wants to look at (Look, renewed by the half minute). Many ask in one call, and an owner
// that is away is asked again until it answers.
package rooms

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// Options of Rooms.
type Options struct {
	Catalog *catalog.Catalog
	Hub     *hub.Hub
	// Owners are the inner listeners of the owners, by name.
	Owners map[string]meshv1connect.OwnerServiceClient
	// Known is closed once the fan-out knows where it is in every partition of an owner's log. Only from then on does
	// it have all that comes after an answer.
	Known func(owner string) <-chan struct{}
	// Missed bounds what one who comes back is given: 1,000 events of a room and 4 MiB of each owner's log when 0.
	Missed hub.Bounds
	// Changed is called when a connection looks at other rooms than before; nil: nobody wants to know. It must not wait.
	Changed func(*hub.Conn)
	// Lease is how long looking lasts unless renewed, which is done at half of it; a minute when 0.
	Lease time.Duration
	// Gather is how long to wait for others who want to ask the same; 2 ms when 0.
	Gather  time.Duration
	Metrics *Metrics
	Guard   *guard.Guard
	Log     *slog.Logger
}

// Rooms asks on behalf of all connections.
type Rooms struct {
	options Options
	asks    map[string]*asker
}

// New returns a Rooms that asks every owner in the catalog.
func New(o Options) *Rooms {
	if o.Lease == 0 {
		o.Lease = time.Minute
	}
	if o.Gather == 0 {
		o.Gather = 2 * time.Millisecond
	}
	if o.Missed.Events == 0 {
		o.Missed.Events = 1000
	}
	if o.Missed.Bytes == 0 {
		o.Missed.Bytes = 4 << 20
	}
	if o.Changed == nil {
		o.Changed = func(*hub.Conn) {}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	r := &Rooms{options: o, asks: map[string]*asker{}}
	for _, owner := range o.Catalog.Owners() {
		r.asks[owner] = newAsker(owner, o)
	}
	return r
}

// Run asks until the context ends.
func (r *Rooms) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range r.asks {
		g.Go(func() error { return a.run(ctx) })
	}
	return g.Wait()
}

// Attach asks all owners for the rooms of a connection's user. The client is told when all have answered.
func (r *Rooms) Attach(c *hub.Conn) { r.attach(newcomer{conn: c}, nil, nil) }

// Resume is Attach for a client that was away, and has everything up to its progress: it gets first what it missed, also
// of rooms that it looked at and may look at still. These are answered as by Look, but for those that nobody knows.
func (r *Rooms) Resume(c *hub.Conn, had hub.Progress, looked []string, answer func(room string, refused bool)) (
	unknown []string) {
	looks := map[*asker][]*look{}
	for _, room := range looked {
		a := r.asked(room)
		if a == nil {
			unknown = append(unknown, room)
			continue
		}
		l := a.expect(c, room, func(no bool) { answer(room, no) })
		if a.logged {
			looks[a] = append(looks[a], l)
		} else { // of state there is nothing but what it is now
			a.looking.add(l)
		}
	}
	c.Returns(had)
	r.attach(newcomer{conn: c, returns: true}, had, looks)
	return unknown
}

func (r *Rooms) attach(n newcomer, had hub.Progress, looks map[*asker][]*look) {
	for _, a := range r.asks {
		if !a.logged {
			continue
		}
		n.had, n.marked = had[a.owner]
		n.looks, n.since = looks[a], a.now()
		a.attachSoon(n)
	}
}

// Look asks whether a connection may look at a room. The answer must not wait. It returns false for a room that
// nobody answers for.
func (r *Rooms) Look(c *hub.Conn, room string, answer func(refused bool)) (known bool) {
	a := r.asked(room)
	if a == nil {
		return false
	}
	a.looking.add(a.expect(c, room, answer))
	return true
}

// Unlook ends looking at a room, also where the owner has not answered yet. The client may be sent events of the room until
// that answer.
func (r *Rooms) Unlook(c *hub.Conn, room string) {
	if a := r.asked(room); a != nil {
		a.mu.Lock()
		for _, l := range a.waiting[c] {
			l.over = l.over || l.room == room
		}
		a.mu.Unlock()
		a.view.Unlook(c, room)
		r.options.Changed(c)
	}
}

// Looking counts the rooms that a connection looks at.
func (r *Rooms) Looking(c *hub.Conn) int {
	n := 0
	for _, a := range r.asks {
		n += a.view.Looking(c)
	}
	return n
}

// LookedAt lists the rooms that a connection looks at, sorted.
func (r *Rooms) LookedAt(c *hub.Conn) (rooms []string) {
	for _, a := range r.asks {
		rooms = append(rooms, a.view.LookedAt(c)...)
	}
	slices.Sort(rooms)
	return rooms
}

// Waiting counts the connections that wait for their rooms of an owner's log.
func (r *Rooms) Waiting(owner string) (n int) {
	for _, first := range []*lane[newcomer]{r.asks[owner].beginning, r.asks[owner].resuming} {
		for l := first; l != nil; l = l.next {
			l.mu.Lock()
			n += len(l.waiting)
			l.mu.Unlock()
		}
	}
	return n
}

func (r *Rooms) asked(room string) *asker {
	kind, _, wellFormed := catalog.SplitAddress(room)
	owner, ok := r.options.Catalog.LookedAt(kind)
	if !ok || !wellFormed {
		return nil
	}
	return r.asks[owner]
}

// asker asks one owner. Those who begin, those who come back and those who look wait in lanes of their own, so that none
// of them keeps the others waiting.
type asker struct {
	owner   string
	options Options
	client  meshv1connect.OwnerServiceClient
	view    *hub.View
	logged  bool

	beginning *lane[newcomer]
	resuming  *lane[newcomer]
	looking   *lane[*look]

	pace pace // of those who connect
	now  func() time.Time

	mu      sync.Mutex
	waiting map[*hub.Conn][]*look // those without an answer
	early   map[*hub.Conn][]*look // of those, the ones of connections that do not know their rooms yet
	// suspects are users whose return failed, alone and twice, until when they are not asked for again: everything is
	// too far for them at once.
	suspects map[string]time.Time
}

type look struct {
	conn     *hub.Conn
	room     string
	answer   func(refused bool)
	over     bool // ended before it was answered; guarded by the asker
	failures int
}

func newAsker(owner string, o Options) *asker {
	a := &asker{owner: owner, options: o, client: o.Owners[owner], view: o.Hub.View(owner),
		logged: len(o.Catalog.LoggedTopics(owner)) > 0, waiting: map[*hub.Conn][]*look{},
		early: map[*hub.Conn][]*look{}, suspects: map[string]time.Time{}, now: time.Now}
	who := func(n newcomer) string { return n.conn.User }
	a.beginning = lanes(kind[newcomer]{name: owner + " rooms", calls: 2, ask: a.begin, ended: a.gone, user: who, each: 4,
		wait: a.paced, failed: a.beginFailed, gather: o.Gather, guard: o.Guard, log: o.Log}, maxCall, 20, 1)
	a.resuming = lanes(kind[newcomer]{name: owner + " resume", calls: 2, ask: a.resume, ended: a.gone, user: who, each: 1,
		alone: true, wait: a.paced, failed: a.resumeFailed, gather: o.Gather, guard: o.Guard, log: o.Log}, maxResumed, 8, 1)
	a.looking = lanes(kind[*look]{name: owner + " look", calls: 2, ask: a.look, failed: a.lookFailed, gather: o.Gather,
		ended: a.lookEnded, user: func(l *look) string { return l.conn.User }, each: 50, guard: o.Guard, log: o.Log}, maxCall, 20, 1)
	return a
}

func (a *asker) run(ctx context.Context) error {
	if a.logged {
		select {
		case <-a.options.Known(a.owner):
		case <-ctx.Done():
			return nil
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { a.beginning.run(ctx) })
	running.Go(func() { a.resuming.run(ctx) })
	running.Go(func() { a.looking.run(ctx) })
	a.renew(ctx)
	return nil
}

// attachSoon lets a connection wait for its rooms.
func (a *asker) attachSoon(n newcomer) {
	if n.marked && a.suspect(n.conn.User) {
		n.marked = false
	}
	if n.marked {
		a.resuming.add(n)
	} else {
		a.beginning.add(n)
	}
}

// paced is how long a connection is not asked for because its user was given much a moment ago.
func (a *asker) paced(n newcomer) time.Duration {
	now := a.now()
	return min(a.pace.wait(n.conn.User, now), n.since.Add(maxPace).Sub(now))
}

// attached has those looks asked for that have waited until their connection knows its rooms.
func (a *asker) attached(c *hub.Conn) {
	a.mu.Lock()
	looks := a.early[c]
	delete(a.early, c)
	a.mu.Unlock()
	if len(looks) > 0 {
		a.looking.add(looks...)
	}
}

// wait keeps a look until its connection knows its rooms.
func (a *asker) wait(l *look) {
	a.mu.Lock()
	a.early[l.conn] = append(a.early[l.conn], l)
	a.mu.Unlock()
	if _, attached := a.view.Now(l.conn); attached { // meanwhile
		a.attached(l.conn)
	}
}

// suspectFor is how long everything is too far at once for a user whose return has failed.
const suspectFor = 5 * time.Minute

func (a *asker) suspect(user string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, known := a.suspects[user]
	if known && time.Now().After(until) {
		delete(a.suspects, user)
		return false
	}
	return known
}

// expect notes that a room is to be asked for, so that Unlook finds it.
func (a *asker) expect(c *hub.Conn, room string, answer func(refused bool)) *look {
	l := &look{conn: c, room: room, answer: answer}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[c] = append(a.waiting[c], l)
	return l
}

// gone reports whether a connection needs its rooms no more.
func (a *asker) gone(n newcomer) bool {
	if !ended(n.conn) {
		return false
	}
	for _, l := range n.looks {
		a.settled(l)
	}
	return true
}

// settled forgets a look that needs no answer any more, and reports whether it was ended meanwhile.
func (a *asker) settled(l *look) (over bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[l.conn] = slices.DeleteFunc(a.waiting[l.conn], func(other *look) bool { return other == l })
	if len(a.waiting[l.conn]) == 0 {
		delete(a.waiting, l.conn)
	}
	return l.over
}

// forget drops what is kept of connections that have ended, and of users who are no longer suspected.
func (a *asker) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.waiting { // all of early are among them
		if ended(c) {
			delete(a.early, c)
			delete(a.waiting, c)
		}
	}
	for user, until := range a.suspects {
		if time.Now().After(until) {
			delete(a.suspects, user)
		}
	}
}

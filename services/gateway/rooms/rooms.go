// Package rooms asks the owners which rooms connections may be in: all rooms of a user when a client connects (Attach)
// or resumes (Resume), and single rooms that a client subscribes to (Subscribe). It renews all subscriptions at
// intervals of half of Options.Lease. One call serves many connections, and is repeated while the owner is unavailable.
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
	// Owners contains, for each owner, the Connect client with which the gateway calls it.
	Owners map[string]meshv1connect.OwnerServiceClient
	// Known returns a channel that is closed once the fan-out knows its position in every partition of an owner's log.
	// From then on, the fan-out delivers every event above the position of an owner's answer.
	Known func(owner string) <-chan struct{}
	// Missed bounds the missed events of one connection: Events in each room (0: 1,000), and Bytes from each owner's
	// log (0: 4 MiB).
	Missed hub.Bounds
	// Unsubscribed is called when a connection is no longer subscribed to a room. The function must not wait, and
	// may be nil.
	Unsubscribed func(*hub.Conn)
	// Lease is how long a subscription lasts unless it is renewed (0: one minute). All subscriptions are renewed at
	// intervals of half that time.
	Lease time.Duration
	// Gather is how long a call waits for further connections or subscriptions that it can serve (0: 2 ms). After a
	// call for more than two users, the wait is ten times as long.
	Gather  time.Duration
	Metrics *Metrics
	Guard   *guard.Guard
	Log     *slog.Logger
}

// Rooms asks the owners on behalf of all connections.
type Rooms struct {
	options Options
	asks    map[string]*ownerCalls
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
	if o.Unsubscribed == nil {
		o.Unsubscribed = func(*hub.Conn) {}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	r := &Rooms{options: o, asks: map[string]*ownerCalls{}}
	for _, owner := range o.Catalog.Owners() {
		r.asks[owner] = newOwnerCalls(owner, o)
	}
	return r
}

// Run calls the owners until the context ends.
func (r *Rooms) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range r.asks {
		g.Go(func() error { return a.run(ctx) })
	}
	return g.Wait()
}

// Attach asks all owners that have a log for the rooms of a connection's user. The client gets the reply to connect
// when all of these owners have answered.
func (r *Rooms) Attach(c *hub.Conn) { r.attach(attaching{conn: c}, nil, nil) }

// Resume is like Attach, but for a client that resumes. The parameter had contains, for each log, the position up to
// which the client has all events. The client gets its missed events before the reply to connect. Resume also
// subscribes the connection to the rooms in the parameter subscribed. The missed events of these rooms are included.
// The function answer is called for each of these rooms, as by Subscribe, except for rooms whose names are malformed or
// whose kind has no subscriptions. Resume returns these rooms instead.
func (r *Rooms) Resume(c *hub.Conn, had hub.Progress, subscribed []string, answer func(room string, refused bool)) (
	unknown []string) {
	subscriptions := map[*ownerCalls][]*subscription{}
	for _, room := range subscribed {
		a := r.callsTo(room)
		if a == nil {
			unknown = append(unknown, room)
			continue
		}
		l := a.expect(c, room, func(no bool) { answer(room, no) })
		if a.logged {
			subscriptions[a] = append(subscriptions[a], l)
		} else { // state has no missed events
			a.subscribing.add(l)
		}
	}
	c.SetProgress(had)
	r.attach(attaching{conn: c, resumes: true}, had, subscriptions)
	return unknown
}

func (r *Rooms) attach(n attaching, had hub.Progress, subscriptions map[*ownerCalls][]*subscription) {
	for _, a := range r.asks {
		if !a.logged {
			continue
		}
		n.point, n.hasProgress = had[a.owner]
		n.subscriptions, n.since = subscriptions[a], a.now()
		a.attachSoon(n)
	}
}

// Subscribe asks the owner of a room whether a connection may subscribe to the room, and if so, subscribes the
// connection. The function answer is called once, unless the connection ends before the owner has answered. It must not
// wait. If the room's name is malformed, or its kind has no subscriptions, Subscribe returns false and never calls the
// function answer.
func (r *Rooms) Subscribe(c *hub.Conn, room string, answer func(refused bool)) (known bool) {
	a := r.callsTo(room)
	if a == nil {
		return false
	}
	a.subscribing.add(a.expect(c, room, answer))
	return true
}

// Unsubscribe ends the subscription to a room, even if the owner has not answered yet. In that case the client may
// still get the snapshot and some events of the room when the owner answers, because the subscription begins and ends
// at that moment.
func (r *Rooms) Unsubscribe(c *hub.Conn, room string) {
	if a := r.callsTo(room); a != nil {
		a.mu.Lock()
		for _, l := range a.waiting[c] {
			l.unsubscribed = l.unsubscribed || l.room == room
		}
		a.mu.Unlock()
		a.shard.Unsubscribe(c, room)
		r.options.Unsubscribed(c)
	}
}

// CountSubscriptions returns the number of rooms that a connection is subscribed to.
func (r *Rooms) CountSubscriptions(c *hub.Conn) int {
	n := 0
	for _, a := range r.asks {
		n += a.shard.CountSubscriptions(c)
	}
	return n
}

// SubscribedRooms lists the rooms that a connection is subscribed to, sorted.
func (r *Rooms) SubscribedRooms(c *hub.Conn) (rooms []string) {
	for _, a := range r.asks {
		rooms = append(rooms, a.shard.SubscribedRooms(c)...)
	}
	slices.Sort(rooms)
	return rooms
}

// Waiting returns the number of connections that wait for a call that asks for their rooms of an owner's log.
// Connections in calls in flight, and those that wait after a failed call (ownerCalls.later), are not included.
func (r *Rooms) Waiting(owner string) (n int) {
	for _, first := range []*lane[attaching]{r.asks[owner].beginning, r.asks[owner].resuming} {
		for l := first; l != nil; l = l.next {
			l.mu.Lock()
			n += len(l.waiting)
			l.mu.Unlock()
		}
	}
	return n
}

func (r *Rooms) callsTo(room string) *ownerCalls {
	kind, _, wellFormed := catalog.SplitAddress(room)
	owner, ok := r.options.Catalog.Subscribable(kind)
	if !ok || !wellFormed {
		return nil
	}
	return r.asks[owner]
}

// ownerCalls calls one owner. New connections, resuming connections and subscriptions wait in separate lanes, so that
// they do not delay each other.
type ownerCalls struct {
	owner   string
	options Options
	client  meshv1connect.OwnerServiceClient
	shard   *hub.Shard
	logged  bool

	beginning   *lane[attaching]
	resuming    *lane[attaching]
	subscribing *lane[*subscription]

	pace pace // of connections that begin or resume
	now  func() time.Time

	mu         sync.Mutex
	waiting    map[*hub.Conn][]*subscription // subscriptions without an answer
	unattached map[*hub.Conn][]*subscription // subscriptions of connections whose rooms are not known yet
	// suspects contains the users whose missed events could not be read in maxFailures calls for them alone. Until the
	// time in this map, their rooms are not recovered, and the owner is not asked for their missed events.
	suspects map[string]time.Time
}

// subscription is a room that a connection is to be subscribed to.
type subscription struct {
	conn         *hub.Conn
	room         string
	answer       func(refused bool)
	unsubscribed bool // whether the client unsubscribed before the answer; guarded by ownerCalls.mu
	failures     int
}

func newOwnerCalls(owner string, o Options) *ownerCalls {
	a := &ownerCalls{owner: owner, options: o, client: o.Owners[owner], shard: o.Hub.Shard(owner),
		logged: len(o.Catalog.LoggedTopics(owner)) > 0, waiting: map[*hub.Conn][]*subscription{},
		unattached: map[*hub.Conn][]*subscription{}, suspects: map[string]time.Time{}, now: time.Now}
	user := func(n attaching) string { return n.conn.User }
	a.beginning = lanes(kind[attaching]{name: owner + " rooms", calls: 2, ask: a.begin, ended: a.gone, user: user, maxPerUser: 4,
		wait: a.paced, failed: a.beginFailed, gather: o.Gather, guard: o.Guard, log: o.Log}, maxCall, 20, 1)
	a.resuming = lanes(kind[attaching]{name: owner + " resume", calls: 2, ask: a.resume, ended: a.gone, user: user, maxPerUser: 1,
		oneCallPerUser: true, wait: a.paced, failed: a.resumeFailed, gather: o.Gather, guard: o.Guard, log: o.Log}, maxResumed, 8, 1)
	a.subscribing = lanes(kind[*subscription]{name: owner + " subscribe", calls: 2, ask: a.authorize,
		failed: a.authorizeFailed, gather: o.Gather, ended: a.subscriptionEnded,
		user: func(l *subscription) string { return l.conn.User }, maxPerUser: 50, guard: o.Guard, log: o.Log}, maxCall, 20, 1)
	return a
}

func (a *ownerCalls) run(ctx context.Context) error {
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
	running.Go(func() { a.subscribing.run(ctx) })
	a.renew(ctx)
	return nil
}

// attachSoon adds a connection to the connections that wait for their rooms.
func (a *ownerCalls) attachSoon(n attaching) {
	if n.hasProgress && a.suspect(n.conn.User) {
		n.hasProgress = false
	}
	if n.hasProgress {
		a.resuming.add(n)
	} else {
		a.beginning.add(n)
	}
}

// paced returns how long a connection has to wait because its user has recently got many missed events or rooms.
func (a *ownerCalls) paced(n attaching) time.Duration {
	now := a.now()
	return min(a.pace.wait(n.conn.User, now), n.since.Add(maxPace).Sub(now))
}

// attached must be called when the rooms of a connection have become known. It moves the subscriptions of the
// connection from the field unattached to the lane of subscriptions.
func (a *ownerCalls) attached(c *hub.Conn) {
	a.mu.Lock()
	subscriptions := a.unattached[c]
	delete(a.unattached, c)
	a.mu.Unlock()
	if len(subscriptions) > 0 {
		a.subscribing.add(subscriptions...)
	}
}

// wait keeps a subscription until the rooms of its connection are known.
func (a *ownerCalls) wait(l *subscription) {
	a.mu.Lock()
	a.unattached[l.conn] = append(a.unattached[l.conn], l)
	a.mu.Unlock()
	if _, attached := a.shard.Now(l.conn); attached { // the connection was attached meanwhile
		a.attached(l.conn)
	}
}

// suspectFor is how long a user stays in suspects.
const suspectFor = 5 * time.Minute

func (a *ownerCalls) suspect(user string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, known := a.suspects[user]
	if known && time.Now().After(until) {
		delete(a.suspects, user)
		return false
	}
	return known
}

// expect records a subscription that waits for the owner's answer, so that Unsubscribe finds it.
func (a *ownerCalls) expect(c *hub.Conn, room string, answer func(refused bool)) *subscription {
	l := &subscription{conn: c, room: room, answer: answer}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[c] = append(a.waiting[c], l)
	return l
}

// gone reports whether a connection has ended. If so, it removes the subscriptions that wait with the connection.
func (a *ownerCalls) gone(n attaching) bool {
	if !ended(n.conn) {
		return false
	}
	for _, l := range n.subscriptions {
		a.settled(l)
	}
	return true
}

// settled removes a subscription from the subscriptions that wait for an answer, and reports whether the client has
// unsubscribed from the room meanwhile.
func (a *ownerCalls) settled(l *subscription) (unsubscribed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[l.conn] = slices.DeleteFunc(a.waiting[l.conn], func(other *subscription) bool { return other == l })
	if len(a.waiting[l.conn]) == 0 {
		delete(a.waiting, l.conn)
	}
	return l.unsubscribed
}

// forget removes the waiting subscriptions of connections that have ended, and the suspects whose time is over.
func (a *ownerCalls) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.waiting { // waiting includes the subscriptions in unattached
		if ended(c) {
			delete(a.unattached, c)
			delete(a.waiting, c)
		}
	}
	for user, until := range a.suspects {
		if time.Now().After(until) {
			delete(a.suspects, user)
		}
	}
}

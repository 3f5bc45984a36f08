// Package rooms asks the owners which rooms connections may be in: all rooms of a user when it connects (Attach), and
// single rooms that a client wants to look at (Look, renewed by the half minute). Many ask in one call, and an owner
// that is away is asked again until it answers.
package rooms

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
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
	// Complete says up to which position all events of an owner's log are among the hub's recent ones, as far as those
	// reach back.
	Complete func(owner string) int64
	// Missed bounds what one who comes back is given: 1,000 events of a room and 4 MiB of each owner's log when 0.
	Missed hub.Bounds
	// Lease is how long looking lasts unless renewed, which is done at half of it; a minute when 0.
	Lease time.Duration
	// Gather is how long to wait for others who want to ask the same; 2 ms when 0.
	Gather  time.Duration
	Metrics *Metrics
	Log     *slog.Logger
}

// Rooms asks on behalf of all connections.
type Rooms struct {
	options Options
	asks    map[string]*asker
}

// New makes a Rooms for every owner in the catalog.
func New(o Options) *Rooms {
	if o.Lease == 0 {
		o.Lease = time.Minute
	}
	if o.Gather == 0 {
		o.Gather = 2 * time.Millisecond
	}
	if o.Complete == nil {
		o.Complete = func(string) int64 { return 0 }
	}
	if o.Missed.Events == 0 {
		o.Missed.Events = 1000
	}
	if o.Missed.Bytes == 0 {
		o.Missed.Bytes = 4 << 20
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	r := &Rooms{options: o, asks: map[string]*asker{}}
	for _, owner := range o.Catalog.Owners() {
		r.asks[owner] = &asker{owner: owner, options: o, client: o.Owners[owner], view: o.Hub.View(owner),
			logged: len(o.Catalog.LoggedTopics(owner)) > 0, wake: make(chan struct{}, 1), waiting: map[*hub.Conn][]*look{}}
	}
	return r
}

// Run asks until the context ends.
func (r *Rooms) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range r.asks {
		g.Go(func() error { return a.run(ctx) })
		g.Go(func() error { return a.renew(ctx) })
	}
	return g.Wait()
}

// Attach asks all owners for the rooms of a connection's user. The client is told when all have answered.
func (r *Rooms) Attach(c *hub.Conn) { r.attach(newcomer{conn: c}, nil, nil) }

// Resume is Attach for a client that was away, and has everything up to a mark: it gets first what it missed, also of
// rooms that it looked at and may look at still. These are answered as by Look, but for those that nobody knows.
func (r *Rooms) Resume(c *hub.Conn, mark hub.Mark, looked []string, answer func(room string, refused bool)) (
	unknown []string) {
	looks := map[*asker][]string{}
	for _, room := range looked {
		switch a := r.asked(room); {
		case a == nil:
			unknown = append(unknown, room)
		case a.logged:
			looks[a] = append(looks[a], room)
		default: // of state there is nothing but what it is now
			a.lookSoon(c, room, func(no bool) { answer(room, no) })
		}
	}
	r.attach(newcomer{conn: c, returns: true, answer: answer}, mark, looks)
	return unknown
}

func (r *Rooms) attach(n newcomer, mark hub.Mark, looks map[*asker][]string) {
	for _, a := range r.asks {
		if !a.logged {
			continue
		}
		n.after, n.marked = mark[a.owner]
		n.looks = looks[a]
		a.want(func() { a.attaching = append(a.attaching, n) })
	}
}

// Look asks for leave to look at rooms. Each answer is called with the code of a refusal, or nothing, for each room;
// it must not wait.
func (r *Rooms) Look(c *hub.Conn, room string, answer func(refused bool)) (known bool) {
	a := r.asked(room)
	if a == nil {
		return false
	}
	a.lookSoon(c, room, answer)
	return true
}

// Unlook ends looking at a room.
func (r *Rooms) Unlook(c *hub.Conn, room string) {
	if a := r.asked(room); a != nil {
		a.mu.Lock()
		for _, l := range a.waiting[c] {
			l.over = l.over || l.room == room
		}
		a.mu.Unlock()
		a.view.Unlook(c, room)
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

func (r *Rooms) asked(room string) *asker {
	kind, id, _ := strings.Cut(room, ":")
	owner, ok := r.options.Catalog.LookedAt(kind)
	if !ok || !catalog.ValidID(id) {
		return nil
	}
	return r.asks[owner]
}

// asker asks one owner.
type asker struct {
	owner   string
	options Options
	client  meshv1connect.OwnerServiceClient
	view    *hub.View
	logged  bool

	crowd bool // several attached in the last round

	mu        sync.Mutex
	attaching []newcomer
	looking   []*look
	waiting   map[*hub.Conn][]*look // those without an answer
	wake      chan struct{}
}

type look struct {
	conn   *hub.Conn
	room   string
	answer func(refused bool)
	over   bool // ended before it was answered; guarded by the asker
}

func (a *asker) lookSoon(c *hub.Conn, room string, answer func(refused bool)) {
	l := &look{conn: c, room: room, answer: answer}
	a.want(func() {
		a.looking = append(a.looking, l)
		a.waiting[c] = append(a.waiting[c], l)
	})
}

// settled forgets a look that needs no answer any more, and says whether it was ended meanwhile.
func (a *asker) settled(l *look) (over bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[l.conn] = slices.DeleteFunc(a.waiting[l.conn], func(other *look) bool { return other == l })
	if len(a.waiting[l.conn]) == 0 {
		delete(a.waiting, l.conn)
	}
	return l.over
}

func (a *asker) want(add func()) {
	a.mu.Lock()
	add()
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *asker) run(ctx context.Context) error {
	if a.logged {
		select {
		case <-a.options.Known(a.owner):
		case <-ctx.Done():
			return nil
		}
	}
	const shortest, longest = 50 * time.Millisecond, 2 * time.Second
	pause := shortest
	for {
		select {
		case <-a.wake:
		case <-ctx.Done():
			return nil
		}
		// Where many came a moment ago more will follow; they are worth a longer wait.
		if gather := a.options.Gather; !sleep(ctx, gather) || a.crowd && !sleep(ctx, 9*gather) {
			return nil
		}
		err := a.attach(ctx)
		err = errors.Join(err, a.look(ctx)) // who is attached need not wait for who cannot be
		if err == nil {
			pause = shortest
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if pause == shortest {
			a.options.Log.Warn("rooms: an owner does not answer, asking again", "owner", a.owner, "error", err)
		}
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, longest)
		a.want(func() {})
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

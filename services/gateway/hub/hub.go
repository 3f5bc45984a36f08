// Package hub knows who is connected to this gateway and which rooms each connection is in. An event comes in from the
// fan-out (View.Deliver) and goes into the queues of the connections that are to get it; each connection's transport
// writes from its own queue (Conn.Take). Nothing in here waits for a client or for another service.
package hub

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Options of a Hub.
type Options struct {
	Catalog *catalog.Catalog
	// Recent bounds what the recent events of all owners cost together, in bytes; 64 MiB when 0.
	Recent int
	// Limits bound what waits for one connection.
	Limits Limits
	// PerUser is how many connections one user may have on this gateway; 64 when 0.
	PerUser int
	// Complete says up to which position all events of an owner's log were delivered here; nil: none are known to be.
	Complete func(owner string) int64
	// MarkEvery is how often connections that were given something get a mark; 5 s when 0.
	MarkEvery time.Duration
	Metrics   *Metrics
}

// Hub holds the connections and one view per owner.
type Hub struct {
	options Options
	logs    []string // owners that have one
	views   map[string]*View

	mu     sync.Mutex
	users  map[string]map[*Conn]bool
	closed *Reason
}

// New makes an empty hub with a view for each owner in the catalog.
func New(o Options) *Hub {
	if o.Recent == 0 {
		o.Recent = 64 << 20
	}
	if o.PerUser == 0 {
		o.PerUser = 64
	}
	if o.Complete == nil {
		o.Complete = func(string) int64 { return 0 }
	}
	if o.MarkEvery == 0 {
		o.MarkEvery = 5 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	h := &Hub{options: o, views: map[string]*View{}, users: map[string]map[*Conn]bool{}}
	owners := o.Catalog.Owners()
	for _, owner := range owners {
		log := -1
		if len(o.Catalog.LoggedTopics(owner)) > 0 {
			log = len(h.logs)
			h.logs = append(h.logs, owner)
		}
		h.views[owner] = newView(owner, log, o.Recent/len(owners), o.Metrics)
	}
	return h
}

// View is that of one owner; nil when the catalog has none of that name.
func (h *Hub) View(owner string) *View { return h.views[owner] }

// ErrClosed says that the hub takes no more connections.
var ErrClosed = errors.New("the gateway ends")

// ErrTooMany says that a user has as many connections as one may have.
var ErrTooMany = errors.New("too many connections of one user")

// Add makes a connection of a user, in no room yet.
func (h *Hub) Add(user string) (*Conn, error) {
	c := newConn(uuid.NewString(), user, h)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed != nil {
		return nil, ErrClosed
	}
	if len(h.users[user]) >= h.options.PerUser {
		return nil, ErrTooMany
	}
	if h.users[user] == nil {
		h.users[user] = map[*Conn]bool{}
	}
	h.users[user][c] = true
	for _, v := range h.views {
		v.enter(c)
	}
	h.options.Metrics.Connections.Inc()
	return c, nil
}

// Remove takes a connection out of all rooms.
func (h *Hub) Remove(c *Conn) {
	c.Close(Lost)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.users[c.User][c] {
		return
	}
	delete(h.users[c.User], c)
	if len(h.users[c.User]) == 0 {
		delete(h.users, c.User)
	}
	for _, v := range h.views {
		v.exit(c)
	}
	h.options.Metrics.Connections.Dec()
}

// idle is how many marks one may miss that was given nothing: an old mark is dear to come back with.
const idle = 12

// Run gives marks until the context ends.
func (h *Hub) Run(ctx context.Context) error {
	tick := time.NewTicker(h.options.MarkEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-tick.C:
			h.Mark(n%idle == 0)
		case <-ctx.Done():
			return nil
		}
	}
}

// Mark gives a mark to all connections that were given something since their last one; anyway: to all.
func (h *Hub) Mark(anyway bool) {
	var all []*Conn
	h.mu.Lock()
	for _, connections := range h.users {
		for c := range connections {
			all = append(all, c)
		}
	}
	h.mu.Unlock()
	positions := h.complete()
	for _, c := range all {
		c.mu.Lock()
		c.mark(positions, anyway)
		c.mu.Unlock()
	}
}

// complete says, for each log, up to which position all its events were delivered.
func (h *Hub) complete() []int64 {
	positions := make([]int64, len(h.logs))
	for i, owner := range h.logs {
		positions[i] = h.options.Complete(owner)
	}
	return positions
}

// mark names the logs of positions.
func (h *Hub) mark(positions []int64) Mark {
	m := Mark{}
	for log, owner := range h.logs {
		m[owner] = positions[log]
	}
	return m
}

// Close ends all connections for a reason, and takes no more.
func (h *Hub) Close(r Reason) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = &r
	for _, connections := range h.users {
		for c := range connections {
			c.Close(r)
		}
	}
}

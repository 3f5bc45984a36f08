// Package hub knows who is connected to this gateway and which rooms each connection is in. An event comes in from the
// fan-out (View.Deliver) and goes into the queues of the connections that are to get it; each connection's transport
// writes from its own queue (Conn.Take). Nothing in here waits for a client or for another service.
package hub

import (
	"errors"
	"sync"

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
	// Ready is the frame that tells a client that all its rooms are open.
	Ready   []byte
	Metrics *Metrics
}

// Hub holds the connections and one view per owner.
type Hub struct {
	options Options
	logs    int
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
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	h := &Hub{options: o, views: map[string]*View{}, users: map[string]map[*Conn]bool{}}
	owners := o.Catalog.Owners()
	for _, owner := range owners {
		logged := len(o.Catalog.LoggedTopics(owner)) > 0
		if logged {
			h.logs++
		}
		h.views[owner] = newView(owner, logged, o.Recent/len(owners), o.Metrics)
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
	c := newConn(uuid.NewString(), user, h.options.Limits, h.options.Metrics)
	c.missing, c.onReady = h.logs, h.options.Ready
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

// Package hub holds the connections of this gateway and the rooms that each of them is in. The fan-out passes an event
// to the shard of the event's owner (Shard.Deliver), which puts the event into the queues of the connections in the
// event's rooms. The transport of a connection takes the frames from the connection's queue (Conn.Next). Nothing in
// this package waits for a client or for another service.
//
// A delivery passes through five files. deliver.go finds the connections, by the memberships in room.go. event.go has
// the frame that these connections share. conn.go puts the frame into the queue of each connection (queue.go), and
// hands it to the transport. The other files contain the shards (shard.go), how a connection enters and leaves rooms
// (attach.go, subscription.go, roomset.go), missed events (buffer.go, missed.go, redact.go), progress and resume tokens
// (progress.go, heartbeat.go, token.go), bounds on waiting frames (limits.go, account.go), signals (signal.go), metrics
// (metrics.go), and how a connection begins and ends (hub.go, transport.go, closing.go, reason.go).
package hub

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Options of a Hub. The zero value of a field stands for its default, if it has one.
type Options struct {
	Catalog *catalog.Catalog
	// Buffer bounds the event buffers of all owners together, in bytes. The default is 64 MiB.
	Buffer int
	// Missed bounds the total size, in bytes, of the missed events in the queues of all connections. The default is 256
	// MiB. If a client's missed events of one log would raise this size above Missed, no room of the client in this log is
	// recovered.
	Missed int
	// Limits bound the frames that wait for one connection or one user.
	Limits Limits
	// PerUser is the maximum number of connections of one user on this gateway. The default is 64.
	PerUser int
	// CoverEvery is the interval of the heartbeats to a connection whose last resume token does not cover all events
	// that were queued for the connection. Such a heartbeat is sent only if a newer token is available. The default is
	// 5 s. In addition, every connection gets a heartbeat at intervals of HeartbeatEvery, five times CoverEvery.
	CoverEvery time.Duration
	// TokenKey authenticates resume tokens. All gateways of an installation have the same key.
	TokenKey []byte
	// Now returns the current time, which determines whether an event has expired. The default is time.Now.
	Now     func() time.Time
	Metrics *Metrics
}

// Hub holds the connections and one shard per owner.
type Hub struct {
	options Options
	logs    []string // the owners that have a log, by number of the log
	shards  map[string]*Shard
	all     []*Shard

	missed atomic.Int64 // bytes of missed events that are queued or about to be queued, summed over all connections

	mu       sync.RWMutex
	users    map[string][]*Conn
	accounts map[string]*account // by user
	slots    [slots]map[*Conn]bool
	next     int // slot of the connection that was added last
	closed   *Reason
}

// New returns an empty hub with a shard for each owner in the catalog.
func New(o Options) *Hub {
	if o.Buffer == 0 {
		o.Buffer = 64 << 20
	}
	if o.Missed == 0 {
		o.Missed = 256 << 20
	}
	if o.PerUser == 0 {
		o.PerUser = 64
	}
	if o.CoverEvery == 0 {
		o.CoverEvery = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	o.Limits = o.Limits.orDefault()
	h := &Hub{options: o, shards: map[string]*Shard{}, users: map[string][]*Conn{},
		accounts: map[string]*account{}}
	for i := range h.slots {
		h.slots[i] = map[*Conn]bool{}
	}
	owners := o.Catalog.Owners()
	for i, owner := range owners {
		log := -1
		if len(o.Catalog.LoggedTopics(owner)) > 0 {
			log = len(h.logs)
			h.logs = append(h.logs, owner)
		}
		sh := newShard(h, i, log, o.Buffer/len(owners))
		h.shards[owner] = sh
		h.all = append(h.all, sh)
	}
	return h
}

// Shard returns the shard of an owner, or nil if the catalog has no such owner.
func (h *Hub) Shard(owner string) *Shard { return h.shards[owner] }

// ErrClosed is returned by Add after Close.
var ErrClosed = errors.New("the gateway is stopping")

// ErrTooMany is returned by Add if the user already has Options.PerUser connections.
var ErrTooMany = errors.New("too many connections of one user")

// Add adds a connection of a user, and returns it. The frames of the connection are written in the given encoding. The
// connection is not in any room yet. The error is ErrClosed or ErrTooMany.
func (h *Hub) Add(user string, e frame.Encoding) (*Conn, error) {
	c := newConn(uuid.NewString(), user, e, h)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed != nil {
		return nil, ErrClosed
	}
	if len(h.users[user]) >= h.options.PerUser {
		return nil, ErrTooMany
	}
	c.held.account = h.open(user)
	c.held.account.connections.Add(1)
	// Append to a copy, because the shards read the list without the lock.
	h.users[user] = append(slices.Clip(h.users[user]), c)
	h.next = (h.next + 1) % slots
	c.slot = h.next
	h.slots[c.slot][c] = true
	h.options.Metrics.Connections.Inc()
	return c, nil
}

// Remove closes a connection, and removes it from the hub and from all rooms.
func (h *Hub) Remove(c *Conn) {
	c.Close(Lost)
	h.mu.Lock()
	present := h.slots[c.slot][c]
	if present {
		delete(h.slots[c.slot], c)
		others := slices.DeleteFunc(slices.Clone(h.users[c.User]), func(other *Conn) bool { return other == c })
		if h.users[c.User] = others; len(others) == 0 {
			delete(h.users, c.User)
		}
		h.options.Metrics.Connections.Dec()
		c.held.account.connections.Add(-1)
		h.shut(c.User)
	}
	h.mu.Unlock()
	if !present {
		return
	}
	for _, sh := range h.all {
		sh.exit(c)
	}
	c.mu.Lock()
	defer c.unlock()
	c.held.writing = 0
	c.drop() // if the connection was closed before for another reason, its queue may not be empty yet
}

// of returns the connections of a user. The list is never changed: Add and Remove replace it.
func (h *Hub) of(user string) []*Conn {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.users[user]
}

// Close closes all connections for a reason, and makes Add return ErrClosed.
func (h *Hub) Close(r Reason) {
	h.mu.Lock()
	h.closed = &r
	h.mu.Unlock()
	h.closeAll(r)
}

func (h *Hub) closeAll(r Reason) {
	h.mu.RLock()
	var all []*Conn
	for _, connections := range h.users {
		all = append(all, connections...)
	}
	h.mu.RUnlock()
	for _, c := range all {
		c.Close(r)
	}
}

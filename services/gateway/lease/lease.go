// Package lease reports the connections of this gateway to the service that stores which connections are open. This
// service is called the keeper here. Package lease also closes the connections that the keeper names in its answers. If
// the keeper gets no report for a few seconds, it regards all connections of the gateway as closed. The keeper also
// stores the rooms of each session, and returns them for a connection that continues the session.
package lease

import (
	"context"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
)

// Options of a Lease.
type Options struct {
	Keeper meshv1connect.ConnectionServiceClient
	// Every is how often to report when nothing changes (0: 1 s). Gather is how long to collect changes for one report
	// (0: 50 ms). Tokens is how often to report newer resume tokens (0: 15 s).
	Every, Gather, Tokens time.Duration
	Log                   *slog.Logger
}

// Lease reports the connections of one gateway.
type Lease struct {
	options Options
	gateway string

	mu        sync.Mutex
	open      map[string]*Connection
	digest    uint32
	changed   map[string]*meshv1.ConnectionChange // changes that were not reported yet, by connection
	tokens    map[string]string                   // the reported resume tokens, by connection
	covered   time.Time                           // when all open connections were last checked for newer resume tokens
	number    int64
	reportAll bool
	wake      chan struct{}

	asks chan *ask // calls of Rooms

	// subscribed contains the connections whose rooms differ from the reported ones. The method Subscribed is called while
	// locks of the hub are held. Therefore subscribedMu, which guards this field, is held only briefly, and no other lock
	// is taken while it is held.
	subscribedMu sync.Mutex
	subscribed   map[string]bool
}

// Connection is a connection to report.
type Connection struct {
	ID, User string
	// Session is the session id, and Device the name of the device.
	Session, Device string
	Since           time.Time
	// Token returns the last resume token that was sent to the client.
	Token func() string
	// Rooms returns the rooms that the client is subscribed to, sorted, and false while they are not known. If the
	// field Rooms is nil, no rooms are reported.
	Rooms func() ([]string, bool)
	// End closes the connection because its user has ended the session. It may be called several times until Gone is
	// called.
	End func()

	reported bool // whether a change of the rooms (see Subscribed) was put into a report
}

// New returns a Lease for a gateway that starts now.
func New(o Options) *Lease {
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.Gather == 0 {
		o.Gather = 50 * time.Millisecond
	}
	if o.Tokens == 0 {
		o.Tokens = 15 * time.Second
	}
	return &Lease{options: o, gateway: uuid.NewString(), open: map[string]*Connection{}, reportAll: true,
		changed: map[string]*meshv1.ConnectionChange{}, tokens: map[string]string{}, covered: time.Now(),
		wake: make(chan struct{}, 1), asks: make(chan *ask), subscribed: map[string]bool{}}
}

// Open adds a connection.
func (l *Lease) Open(c Connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c.ID] = &c
	l.digest += Hash(c.ID, c.User)
	l.change(l.describe(&c))
}

// Subscribed records that a connection's rooms differ from the reported ones.
func (l *Lease) Subscribed(connection string) {
	l.subscribedMu.Lock()
	l.subscribed[connection] = true
	l.subscribedMu.Unlock()
	l.ring()
}

// takeSubscribed returns the connections whose rooms must be reported, and clears the set.
func (l *Lease) takeSubscribed() map[string]bool {
	l.subscribedMu.Lock()
	defer l.subscribedMu.Unlock()
	all := l.subscribed
	l.subscribed = map[string]bool{}
	return all
}

// Gone removes a connection that has ended, and reports its end.
func (l *Lease) Gone(connection string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, open := l.open[connection]
	if !open {
		return
	}
	gone := l.describe(c)
	gone.Gone = true
	l.subscribedMu.Lock()
	subscribed := l.subscribed[connection]
	delete(l.subscribed, connection)
	l.subscribedMu.Unlock()
	if subscribed {
		gone.Rooms = c.subscriptions()
	}
	delete(l.open, connection)
	delete(l.tokens, connection)
	l.digest -= Hash(c.ID, c.User)
	l.change(gone)
}

// describe returns a connection with its newest resume token, and records the token as reported.
func (l *Lease) describe(c *Connection) *meshv1.ConnectionChange {
	token := c.Token()
	l.tokens[c.ID] = token
	return &meshv1.ConnectionChange{Connection: c.ID, User: c.User, Session: c.Session, Device: c.Device,
		ConnectedAt: timestamppb.New(c.Since), ResumeToken: token}
}

// maxRooms bounds the names of the rooms in a report of one connection, in bytes. A connection can be subscribed to 500
// rooms, whose names, with ids of 36 characters, take about 20 kB.
const maxRooms = 32 << 10

// subscriptions returns the rooms of a connection for a report, or nil if the field Rooms is nil or the rooms are not
// known yet. Rooms beyond maxRooms are left out.
func (c *Connection) subscriptions() *meshv1.SubscribedRooms {
	if c.Rooms == nil {
		return nil
	}
	rooms, known := c.Rooms()
	if !known {
		return nil
	}
	bytes := 0
	for i, room := range rooms {
		if bytes += len(room) + 1; bytes > maxRooms {
			rooms = rooms[:i]
			break
		}
	}
	return &meshv1.SubscribedRooms{Rooms: rooms}
}

func (l *Lease) change(c *meshv1.ConnectionChange) {
	l.changed[c.Connection] = c
	l.ring()
}

func (l *Lease) ring() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Hash returns the number that stands for one connection in the digest of a report. The digest is the sum of the
// numbers of all open connections. The keeper compares the digest with that of the connections that it has stored.
func Hash(connection, user string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(connection + " " + user))
	return h.Sum32()
}

// Run reports connections, and serves calls of Rooms, until the context ends. Then it reports that this gateway has
// ended.
func (l *Lease) Run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	for range 2 {
		asking.Go(func() { l.answer(ctx) })
	}
	tick := time.NewTicker(l.options.Every)
	defer tick.Stop()
	unavailable := false
	for {
		err := l.report(ctx)
		if err != nil && !unavailable && ctx.Err() == nil {
			l.options.Log.Warn("lease: connections are not reported", "error", err)
		}
		if err == nil && unavailable {
			l.options.Log.Info("lease: connections are reported again")
		}
		unavailable = err != nil
		wake := l.wake
		if unavailable {
			wake = nil // report at each tick instead of at each change
		}
		select {
		case <-tick.C:
		case <-wake:
			select {
			case <-time.After(l.options.Gather):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			l.end()
			return nil
		}
	}
}

// report sends the changes, and closes the connections that the keeper names in its answer. The keeper requests all
// connections if it has no lease of this gateway, or if the count or the digest of the connections that it has stored
// differs from the reported one. Then report sends all connections in a second report.
func (l *Lease) report(ctx context.Context) error {
	for range 2 {
		parts, sent := l.next()
		var answer *meshv1.ReportResponse
		for _, part := range parts {
			var err error
			if answer, err = l.send(ctx, part); err != nil {
				l.unsent(sent, part.All)
				return err
			}
		}
		l.mu.Lock()
		l.reportAll = answer.ReportAll
		var ended []*Connection
		for _, connection := range answer.Ended {
			if c := l.open[connection]; c != nil {
				ended = append(ended, c)
			}
		}
		l.mu.Unlock()
		for _, c := range ended {
			c.End()
		}
		if !answer.ReportAll {
			return nil
		}
	}
	return nil
}

func (l *Lease) send(ctx context.Context, part *meshv1.ReportRequest) (*meshv1.ReportResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*l.options.Every)
	defer cancel()
	response, err := l.options.Keeper.Report(ctx, connect.NewRequest(part))
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// unsent queues the changes of a failed report again. The keeper may get some of them twice, which is harmless. If more
// than maxChanges wait, unsent drops them. The next report then contains all open connections, and the keeper removes
// all others of this gateway.
func (l *Lease) unsent(sent map[string]*meshv1.ConnectionChange, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := 0
	for connection, c := range sent {
		rooms := c.Rooms
		if l.open[connection] != nil && rooms != nil { // the rooms of an open connection are read again for the next report
			c.Rooms = nil
			l.Subscribed(connection)
		}
		newer := l.changed[connection]
		if newer == nil {
			newer = c
			l.changed[connection] = c
		}
		// The rooms of a connection that has ended cannot be read again, so they are kept, up to maxKeptRooms bytes.
		// Beyond that, sessions continue with rooms that were reported earlier.
		if newer.Gone {
			if newer.Rooms == nil {
				newer.Rooms = rooms
			}
			if kept += roomBytes(newer); kept > maxKeptRooms {
				newer.Rooms = nil
			}
		}
	}
	if l.reportAll = l.reportAll || all || len(l.changed) > maxChanges; len(l.changed) > maxChanges {
		clear(l.changed)
	}
}

const (
	// maxChanges is the number of changes that may wait after a failed report. If there are more, the next report
	// contains all open connections instead.
	maxChanges = 5000
	// maxPart is the maximum number of changes in one request. A request also gets no further change once the names of
	// the rooms in it have maxPartRooms bytes. The keeper applies a request in one script, during which Redis does
	// nothing else, so a request must be short.
	maxPart      = 500
	maxPartRooms = 1 << 20
	// maxKeptRooms limits the bytes of the rooms of connections that have ended and are in a failed report.
	maxKeptRooms = 4 << 20
)

func roomBytes(c *meshv1.ConnectionChange) (n int) {
	for _, room := range c.GetRooms().GetRooms() {
		n += len(room) + 1
	}
	return n
}

// parted splits changes into parts of one request each.
func parted(changes []*meshv1.ConnectionChange) (parts [][]*meshv1.ConnectionChange) {
	for begin, n, bytes := 0, 0, 0; n < len(changes); {
		bytes += roomBytes(changes[n])
		if n++; n == len(changes) || n-begin == maxPart || bytes >= maxPartRooms {
			parts = append(parts, changes[begin:n])
			begin, bytes = n, 0
		}
	}
	return parts
}

// next returns the next report, in parts, and the changes to queue again if the report fails.
func (l *Lease) next() (parts []*meshv1.ReportRequest, sent map[string]*meshv1.ConnectionChange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changes, sent := l.news()
	for _, part := range parted(changes) {
		parts = append(parts, &meshv1.ReportRequest{Changes: part, More: true})
	}
	if len(parts) == 0 {
		parts = append(parts, &meshv1.ReportRequest{})
	}
	for n, r := range parts {
		l.number++
		r.Gateway, r.Number, r.Part, r.All = l.gateway, l.number, int32(n), l.reportAll
	}
	last := parts[len(parts)-1]
	last.More, last.Count, last.Digest = false, int64(len(l.open)), l.digest
	return parts, sent
}

// news returns the changes for the next report: all open connections if l.reportAll is set, and otherwise the
// connections that have changed. The map sent contains the changes to queue again if the report fails.
func (l *Lease) news() (changes []*meshv1.ConnectionChange, sent map[string]*meshv1.ConnectionChange) {
	sent = l.changed
	l.changed = map[string]*meshv1.ConnectionChange{}
	subscribed := l.takeSubscribed()
	for id := range subscribed {
		if c := l.open[id]; c != nil {
			c.reported = true // from now on the rooms are the client's choice, and are not restored ones
		}
	}
	if l.reportAll {
		for _, c := range l.open {
			change := l.describe(c)
			// Do not report an empty list of rooms that the client has not changed. Restoring the rooms of its session
			// may have failed, and an empty list would remove them from the session. Report any other list that the
			// client has not changed, but mark it as restored, so that it does not replace newer rooms at the keeper.
			if rooms := c.subscriptions(); rooms != nil && (c.reported || len(rooms.Rooms) > 0) {
				rooms.Restored = !c.reported
				change.Rooms = rooms
			}
			changes = append(changes, change)
		}
		// Of the connections of one session, the keeper regards the one that it gets last as the newest, and stores the
		// rooms of this connection.
		slices.SortFunc(changes, func(a, b *meshv1.ConnectionChange) int {
			return a.ConnectedAt.AsTime().Compare(b.ConnectedAt.AsTime())
		})
		return changes, sent
	}
	for id := range subscribed {
		c := l.open[id]
		if c == nil {
			continue
		}
		if sent[id] == nil {
			sent[id] = l.describe(c)
		}
		sent[id].Rooms = c.subscriptions()
	}
	if time.Since(l.covered) >= l.options.Tokens {
		l.covered = time.Now()
		for id, c := range l.open {
			if sent[id] == nil && c.Token() != l.tokens[id] {
				sent[id] = l.describe(c)
			}
		}
	}
	for _, c := range sent {
		changes = append(changes, c)
	}
	return changes, sent
}

func (l *Lease) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	l.mu.Lock()
	l.number++
	r := &meshv1.ReportRequest{Gateway: l.gateway, Number: l.number, Ends: true}
	for _, c := range l.changed { // connections that have just ended, with their resume tokens and rooms
		if c.Gone && len(r.Changes) < maxPart {
			r.Changes = append(r.Changes, c)
		}
	}
	l.mu.Unlock()
	if _, err := l.options.Keeper.Report(ctx, connect.NewRequest(r)); err != nil {
		l.options.Log.Warn("lease: the end of this gateway was not reported", "error", err)
	}
}

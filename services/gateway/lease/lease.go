// Package lease tells the service that keeps who is connected where which connections this gateway has, and ends those
// that it names. The service takes all of them for gone when it hears nothing for a few seconds.
package lease

import (
	"context"
	"hash/fnv"
	"log/slog"
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
	// Every is how often to report when nothing changes, a second when 0; Gather how long to gather what changed,
	// 50 ms when 0; Marks how often to tell marks that are newer, 15 s when 0.
	Every, Gather, Marks time.Duration
	Log                  *slog.Logger
}

// Lease reports the connections of one gateway.
type Lease struct {
	options Options
	gateway string

	mu      sync.Mutex
	open    map[string]*Connection
	digest  uint32
	changed map[string]*meshv1.ConnectionChange // since the last report that arrived
	marks   map[string]string                   // as they were told, by connection
	marked  time.Time                           // when marks were told
	number  int64
	all     bool
	wake    chan struct{}
}

// Connection is one that is reported.
type Connection struct {
	ID, User string
	// Session is the stay of one device, over all its connections; Device what the client says of itself.
	Session, Device string
	Since           time.Time
	// Mark gives the last mark that the client was sent.
	Mark func() string
	// End ends the connection, because its user has ended the session. It may be called again until it is gone.
	End func()
}

// New makes a Lease for a gateway that begins now.
func New(o Options) *Lease {
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.Gather == 0 {
		o.Gather = 50 * time.Millisecond
	}
	if o.Marks == 0 {
		o.Marks = 15 * time.Second
	}
	return &Lease{options: o, gateway: uuid.NewString(), open: map[string]*Connection{}, all: true,
		changed: map[string]*meshv1.ConnectionChange{}, marks: map[string]string{}, marked: time.Now(),
		wake: make(chan struct{}, 1)}
}

// Open notes a connection.
func (l *Lease) Open(c Connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c.ID] = &c
	l.digest += Hash(c.ID, c.User)
	l.change(l.describe(&c))
}

// Gone notes that a connection has ended.
func (l *Lease) Gone(connection string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, open := l.open[connection]
	if !open {
		return
	}
	gone := l.describe(c)
	gone.Gone = true
	delete(l.open, connection)
	delete(l.marks, connection)
	l.digest -= Hash(c.ID, c.User)
	l.change(gone)
}

// describe is a connection with its newest mark, which counts as told.
func (l *Lease) describe(c *Connection) *meshv1.ConnectionChange {
	mark := c.Mark()
	l.marks[c.ID] = mark
	return &meshv1.ConnectionChange{Connection: c.ID, User: c.User, Session: c.Session, Device: c.Device,
		ConnectedAt: timestamppb.New(c.Since), Mark: mark}
}

func (l *Lease) change(c *meshv1.ConnectionChange) {
	l.changed[c.Connection] = c
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Hash is what one connection adds to a report's digest.
func Hash(connection, user string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(connection + " " + user))
	return h.Sum32()
}

// Run reports until the context ends, and then that all connections are gone.
func (l *Lease) Run(ctx context.Context) error {
	tick := time.NewTicker(l.options.Every)
	defer tick.Stop()
	away := false
	for {
		err := l.report(ctx)
		if err != nil && !away && ctx.Err() == nil {
			l.options.Log.Warn("lease: connections are not reported", "error", err)
		}
		if err == nil && away {
			l.options.Log.Info("lease: connections are reported again")
		}
		away = err != nil
		wake := l.wake
		if away {
			wake = nil // by the second, not by each change
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

// report sends what changed, or everything where the keeper knows something else.
func (l *Lease) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*l.options.Every)
	defer cancel()
	for range 2 {
		request, sent := l.next()
		response, err := l.options.Keeper.Report(ctx, connect.NewRequest(request))
		l.mu.Lock()
		if err != nil {
			// It may have arrived or not: the same is told again.
			for connection, c := range sent {
				if _, newer := l.changed[connection]; !newer {
					l.changed[connection] = c
				}
			}
			l.all = l.all || request.All
			l.mu.Unlock()
			return err
		}
		l.all = response.Msg.Again
		var ended []*Connection
		for _, connection := range response.Msg.Ended {
			if c := l.open[connection]; c != nil {
				ended = append(ended, c)
			}
		}
		l.mu.Unlock()
		for _, c := range ended {
			c.End()
		}
		if !response.Msg.Again {
			return nil
		}
	}
	return nil
}

func (l *Lease) next() (*meshv1.ReportRequest, map[string]*meshv1.ConnectionChange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.number++
	r := &meshv1.ReportRequest{Gateway: l.gateway, Number: l.number, All: l.all, Count: int64(len(l.open)),
		Digest: l.digest}
	sent := l.changed
	l.changed = map[string]*meshv1.ConnectionChange{}
	if l.all {
		for _, c := range l.open {
			r.Changes = append(r.Changes, l.describe(c))
		}
		return r, sent
	}
	if time.Since(l.marked) >= l.options.Marks {
		l.marked = time.Now()
		for id, c := range l.open {
			if sent[id] == nil && c.Mark() != l.marks[id] {
				sent[id] = l.describe(c)
			}
		}
	}
	for _, c := range sent {
		r.Changes = append(r.Changes, c)
	}
	return r, sent
}

func (l *Lease) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	l.mu.Lock()
	l.number++
	r := &meshv1.ReportRequest{Gateway: l.gateway, Number: l.number, Ends: true}
	l.mu.Unlock()
	if _, err := l.options.Keeper.Report(ctx, connect.NewRequest(r)); err != nil {
		l.options.Log.Warn("lease: the end of this gateway is not reported", "error", err)
	}
}

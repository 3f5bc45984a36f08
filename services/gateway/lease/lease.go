// Package lease tells the service that keeps who is connected where which connections this gateway has. The service
// takes all of them for gone when it hears nothing for a few seconds.
package lease

import (
	"context"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
)

// Options of a Lease.
type Options struct {
	Keeper meshv1connect.ConnectionServiceClient
	// Every is how often to report when nothing changes, a second when 0; Gather how long to gather what changed,
	// 50 ms when 0.
	Every, Gather time.Duration
	Log           *slog.Logger
}

// Lease reports the connections of one gateway.
type Lease struct {
	options Options
	gateway string

	mu      sync.Mutex
	users   map[string]string // connection → user
	digest  uint32
	changed map[string]*meshv1.ConnectionChange // since the last report that arrived
	number  int64
	all     bool
	wake    chan struct{}
}

// New makes a Lease for a gateway that begins now.
func New(o Options) *Lease {
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.Gather == 0 {
		o.Gather = 50 * time.Millisecond
	}
	return &Lease{options: o, gateway: uuid.NewString(), users: map[string]string{}, all: true,
		changed: map[string]*meshv1.ConnectionChange{}, wake: make(chan struct{}, 1)}
}

// Open notes a connection.
func (l *Lease) Open(connection, user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users[connection] = user
	l.change(&meshv1.ConnectionChange{Connection: connection, User: user})
}

// Gone notes that a connection has ended.
func (l *Lease) Gone(connection string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	user, open := l.users[connection]
	if !open {
		return
	}
	delete(l.users, connection)
	l.change(&meshv1.ConnectionChange{Connection: connection, User: user, Gone: true})
}

func (l *Lease) change(c *meshv1.ConnectionChange) {
	if c.GetGone() {
		l.digest -= Hash(c.GetConnection(), c.GetUser())
	} else {
		l.digest += Hash(c.GetConnection(), c.GetUser())
	}
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
		l.mu.Unlock()
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
	r := &meshv1.ReportRequest{Gateway: l.gateway, Number: l.number, All: l.all, Count: int64(len(l.users)),
		Digest: l.digest}
	sent := l.changed
	l.changed = map[string]*meshv1.ConnectionChange{}
	if l.all {
		for connection, user := range l.users {
			r.Changes = append(r.Changes, &meshv1.ConnectionChange{Connection: connection, User: user})
		}
		return r, sent
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

// Package eventlog is one owner's append-only log in Postgres: its events in streams with dense versions and one
// ascending position, the outcome of every command, who is in which room, and what was read of other owners' logs. Each
// owner has a schema of its own name.
//
// Writers meet in a group commit: one goroutine per Log takes all who wait into one transaction under the log's
// advisory lock, so position order is commit order for any number of instances, and a reader of "position > last" skips
// nothing. Nobody is answered before the commit. Readers load single streams (Load), read pages (Read), follow by
// position in transactions of their own (Follow), or relay the log to its topics (Relay).
package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Options say whose log it is and where it lives.
type Options struct {
	// Owner is the service that owns the log, and the name of its schema.
	Owner string
	// Pool is shared with whatever else the process does in this database. Beside it a Log holds one connection that
	// commits and one that listens, and a Relay and each projection that is followed one that holds a lease.
	Pool    *pgxpool.Pool
	Catalog *catalog.Catalog
	// Migrations are those of the owner's own projections (goose files at the root of the file system), run after the
	// log's under the same lock, with the owner's schema as search_path. Nil: none.
	Migrations fs.FS
	// Waiting is told when something cannot go on because Postgres (or, for a Relay, Kafka) is away, and with nil when it
	// goes on. Nil: nobody is told.
	Waiting func(dependency string, err error)
	Tracer  trace.Tracer     // nil: no spans
	Log     *slog.Logger     // nil: slog.Default
	Now     func() time.Time // nil: time.Now
}

// Log is one owner's log. It is safe for concurrent use.
type Log struct {
	o        Options
	sql      statements
	queue    *queue
	head     *progress // the newest position that is known to be committed
	history  history
	waiting  waiting
	applied  progresses // by projection, as far as this instance knows
	sessions sessions
	times    timeouts
	clock    estimate
	checked  func() // for tests: called under the lock, before anything is written
	session  session
	notices  notices
	effects  effects

	maxRooms map[string]int // by kind: in how many rooms one may be
}

// timeouts bound what a holder of the log's lock can cost the others.
type timeouts struct {
	lock time.Duration // how long to wait for the lock
	hold time.Duration // how long to hold it, and how long to stand still while holding it
	// silence is for how long the holder of a lease may not be heard of; leaseSilence, but in tests.
	silence time.Duration
}

var schemaName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,40}$`)

// Open creates the schema and migrates it, under a lock that keeps instances apart.
func Open(ctx context.Context, o Options) (*Log, error) {
	if !schemaName.MatchString(o.Owner) {
		return nil, fmt.Errorf("event log: owner %q cannot name a schema", o.Owner)
	}
	if o.Pool == nil || o.Catalog == nil {
		return nil, errors.New("event log: it needs a pool and a catalog")
	}
	if o.Waiting == nil {
		o.Waiting = func(string, error) {}
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Log = o.Log.With("log", o.Owner)
	l := &Log{
		o: o, sql: newStatements(o.Owner), queue: newQueue(), head: newProgress(),
		waiting: waiting{tell: o.Waiting}, times: timeouts{lock: 10 * time.Second, hold: 2 * time.Second, silence: leaseSilence},
	}
	l.session.log, l.notices = l, make(notices, 1)
	if err := migrate(ctx, o); err != nil {
		return nil, fmt.Errorf("event log of %s: %w", o.Owner, err)
	}
	if _, err := l.Head(ctx); err != nil {
		return nil, err
	}
	if _, err := l.readClock(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// Run commits what is handed in, listens for what other instances commit, and prunes old outcomes, until ctx ends. What
// is in flight then is finished; what waits gets an error that wraps bus.ErrAway. Commit needs it.
func (l *Log) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { l.commitAll(ctx) })
	running.Go(l.notifyAll)
	running.Go(func() { l.listen(ctx) })
	running.Go(func() { l.pruneDaily(ctx) })
	running.Wait()
	return nil
}

// Head is the position of the newest event, or the floor of an incarnation that has none yet; 0 in a new log.
func (l *Log) Head(ctx context.Context) (position int64, err error) {
	p, err := l.Newest(ctx)
	return p.Position, err
}

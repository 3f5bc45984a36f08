// Package eventlog is one owner's append-only log in Postgres. It stores events in streams, with dense versions within
// a stream and ascending positions over the whole log; the outcomes of commands, for 30 days; the memberships of rooms;
// and timers. Each owner's log has a schema of its own, with the owner's name. In the same schema, package inbox stores
// how far the owner has consumed other owners' logs. This progress is committed together with the events that follow
// from the consumed events.
//
// Writes are committed in groups: one goroutine per Log commits the pending writes in one transaction, under the log's
// advisory lock. The lock is held until the commit has ended. So positions ascend in the order of the commits, for any
// number of instances, and a reader that reads the events above its last position misses none. A write succeeds for its
// caller only after the commit. Readers load streams (Load), read pages (Read), or follow the log by position in
// transactions of their own, as package projection does. Package relay publishes the log to its topics.
package eventlog

import (
	"cmp"
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
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/progress"
)

// Options configure a Log.
type Options struct {
	// Owner is the service that owns the log, and the name of its schema.
	Owner string
	// Pool may be shared with other uses of the database. Outside the pool, a Log holds one connection for commits and
	// one on which it receives notifications; a Relay and each followed projection hold one for their lease.
	Pool    *pgxpool.Pool
	Catalog *catalog.Catalog
	// Migrations create the tables of the owner's own projections. They are goose files at the root of the file system.
	// They run after the log's own migrations, under the same lock. Their search_path is the owner's schema. Nil: there
	// are none.
	Migrations fs.FS
	// Waiting is called with an error when the first waiter begins to wait for a dependency, and with a nil error when
	// no waiter of this dependency is left. Waiters are the Log, its Relay and its projections. The dependency is
	// "kafka" if the Relay cannot publish to a topic or count its partitions. In all other cases, it is "postgres",
	// even if a waiter fails for another reason. Nil: not called.
	Waiting func(dependency string, err error)
	// LockWait is how long a commit, or another operation, waits for the log's lock before it fails; 0: 10 s.
	LockWait time.Duration
	Tracer   trace.Tracer     // nil: no trace spans
	Log      *slog.Logger     // nil: slog.Default
	Now      func() time.Time // nil: time.Now
}

// Log is one owner's log. It is safe for concurrent use.
type Log struct {
	o       Options
	sql     statements
	queue   *queue
	head    *progress.Progress // newest head of the log that this instance has seen (see Log.Head)
	history history
	waiting waiting
	applied progress.Set // newest positions of projections that this instance has read or saved, by name
	times   timeouts
	clock   estimate
	checked func() // for tests: called under the lock, before anything is written
	session session
	inbox   *inbox.Inbox
	notices notices
	effects effects

	maxRooms map[string]int // by kind: the maximum number of rooms of a user
}

// MaxHold is how long a holder may keep the log's lock. Nothing can be appended meanwhile. The server ends the database
// session of a holder that exceeds this time. Under HoldLock, the server may end the session as late as after twice
// MaxHold, because it bounds each transaction and each pause between transactions separately.
const MaxHold = 2 * time.Second

// timeouts bound how long an instance waits for the log's lock, and how long it holds the lock.
type timeouts struct {
	lock time.Duration // maximum wait for the lock
	hold time.Duration // maximum time that the lock is held, and that the connection is idle within the transaction
}

var schemaName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,40}$`)

// Open creates and migrates the schema and returns the log. A lock ensures that one instance at a time migrates.
func Open(ctx context.Context, o Options) (*Log, error) {
	if !schemaName.MatchString(o.Owner) {
		return nil, fmt.Errorf("event log: owner %q cannot name a schema", o.Owner)
	}
	if o.Pool == nil || o.Catalog == nil {
		return nil, errors.New("event log: Options have no Pool or no Catalog")
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
		o: o, sql: newStatements(o.Owner), queue: newQueue(), head: progress.New(),
		waiting: waiting{report: o.Waiting}, times: timeouts{lock: cmp.Or(o.LockWait, 10*time.Second), hold: MaxHold},
	}
	l.session.log, l.notices = l, make(notices, 1)
	l.inbox = inbox.New(inbox.Options{Owner: o.Owner, Pool: o.Pool, SQL: l.SQL, Now: o.Now})
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

// Run commits writes, notifies other instances of them, listens for the commits of other instances, and prunes old
// outcomes, until ctx ends. Then it completes the transactions for the writes that it has taken from the queue; writes
// that still wait in the queue fail with an error that wraps retry.ErrUnavailable. Before Run, writes wait in the
// queue.
func (l *Log) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { l.commitAll(ctx) })
	running.Go(l.notifyAll)
	running.Go(func() { l.listen(ctx) })
	running.Go(func() { l.pruneDaily(ctx) })
	running.Wait()
	return nil
}

// Inbox returns the inbox, which stores the progress of consuming other owners' topics.
func (l *Log) Inbox() *inbox.Inbox { return l.inbox }

// Head returns the position of the newest event. In an incarnation without events, the head is the incarnation's floor,
// which is the position above which its events will be; in a new log it is 0.
func (l *Log) Head(ctx context.Context) (position catalog.Position, err error) {
	p, err := l.Newest(ctx)
	return p.Position, err
}

// Package eventlogtest provides logs for tests of projections, stores and queries. Each log has a database of its own
// on a real PostgreSQL server (see meshtest), so tests that use this package have the build tag integration.
package eventlogtest

import (
	"context"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/eventlog/rebuild"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Log is a log that runs until the test ends.
type Log struct {
	*eventlog.Log
	Pool    *pgxpool.Pool
	Catalog *catalog.Catalog

	t       testing.TB
	owner   string
	tables  []string // tables that the owner's migrations create
	work    context.Context
	running sync.WaitGroup

	mu       sync.Mutex
	followed []projection.Applier
	position catalog.Position // position of the newest event that AppendAll or Decide has committed
}

// Open opens and runs the log of an owner ("chat"), with the migrations of its projections (nil: none).
func Open(t testing.TB, owner string, migrations fs.FS) *Log {
	t.Helper()
	l := &Log{t: t, owner: owner}
	var stop context.CancelFunc
	l.work, stop = context.WithCancel(context.Background())
	var err error
	l.Catalog, err = catalog.Load()
	l.require(err)
	l.Pool, err = backend.Postgres{URL: meshtest.Postgres(t)}.Open(t.Context())
	l.require(err)
	t.Cleanup(l.Pool.Close)
	t.Cleanup(func() { stop(); l.running.Wait() })

	o := eventlog.Options{Owner: owner, Pool: l.Pool, Catalog: l.Catalog, Log: slog.New(slog.DiscardHandler)}
	_, err = eventlog.Open(t.Context(), o)
	l.require(err)
	own := l.tablesNow()
	o.Migrations = migrations
	l.Log, err = eventlog.Open(t.Context(), o)
	l.require(err)
	l.tables = slices.DeleteFunc(l.tablesNow(), func(table string) bool {
		return slices.Contains(own, table) || table == "owner_migrations"
	})
	l.run(l.Log.Run)
	return l
}

func (l *Log) require(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// run calls f with a context that ends with the test.
func (l *Log) run(f func(context.Context) error) {
	l.running.Go(func() {
		if err := f(l.work); err != nil && l.work.Err() == nil {
			l.t.Error(err)
		}
	})
}

func (l *Log) tablesNow() []string {
	l.t.Helper()
	return l.texts("SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1", l.owner)
}

func (l *Log) texts(statement string, args ...any) []string {
	l.t.Helper()
	rows, err := l.Pool.Query(l.t.Context(), statement, args...)
	l.require(err)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	l.require(err)
	return texts
}

// Append commits events that a user caused, in one transaction. Each event goes to the stream that its declaration
// names.
func (l *Log) Append(actor string, events ...proto.Message) {
	l.t.Helper()
	var all []decidetest.Event
	for _, m := range events {
		all = append(all, decidetest.By(actor, m))
	}
	l.AppendAll(all...)
}

// AppendAll commits events of several users in one transaction.
func (l *Log) AppendAll(events ...decidetest.Event) {
	l.t.Helper()
	var w eventlog.Write
	for _, e := range events {
		w.Appends = append(w.Appends, l.appendOf(e))
	}
	l.require(l.commit(w))
}

// appendOf returns an event for the stream that its declaration names.
func (l *Log) appendOf(e decidetest.Event) eventlog.Append {
	l.t.Helper()
	declared, ok := l.Catalog.EventOf(e.Message)
	if !ok {
		l.t.Fatalf("%T is not declared as an event", e.Message)
	}
	return eventlog.Append{Expected: eventlog.AnyVersion, Actor: e.Actor,
		Stream: declared.Place(e.Message, catalog.Origin{Actor: e.Actor}).Stream, Events: []proto.Message{e.Message}}
}

// commit commits a write, and records its position for As.
func (l *Log) commit(w eventlog.Write) error {
	c, err := l.Commit(l.t.Context(), w)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.position = max(l.position, c.Position)
	return err
}

// As returns the context for a query of a user. The answer must contain every event that Append or AppendAll has
// committed so far.
func (l *Log) As(user string) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return rpc.WithPosition(rpc.WithActor(l.t.Context(), user), l.position)
}

// Follow applies the log to projections until the test ends.
func (l *Log) Follow(projections ...projection.Applier) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range projections {
		l.followed = append(l.followed, p)
		l.run(func(ctx context.Context) error { return projection.Follow(ctx, l.Log, p) })
	}
}

// CatchUp waits until the followed projections contain every event that is committed.
func (l *Log) CatchUp() {
	l.t.Helper()
	head, err := l.Head(l.t.Context())
	l.require(err)
	l.mu.Lock()
	followed := slices.Clone(l.followed)
	l.mu.Unlock()
	for _, p := range followed {
		l.require(projection.WaitFor(l.t.Context(), l.Log, p.Name(), head))
	}
}

// Rows calls CatchUp, and then returns every row of the tables of the owner's migrations as text, sorted.
func (l *Log) Rows() (all []string) {
	l.t.Helper()
	l.CatchUp()
	for _, table := range l.tables {
		all = append(all, l.texts("SELECT $1 || ' ' || t::text FROM "+pgx.Identifier{l.owner, table}.Sanitize()+" t ORDER BY 1",
			table)...)
	}
	return all
}

// RequireRebuild rebuilds the followed projections from the beginning of the log, usually in other batches than Follow
// used. It fails the test if a rebuilt row differs from the live one, or if the rebuild reports a problem
// (rebuild.Result.Left).
func (l *Log) RequireRebuild() {
	l.t.Helper()
	live := l.Rows()
	l.mu.Lock()
	followed := slices.Clone(l.followed)
	l.mu.Unlock()
	rebuilt, err := rebuild.Projections(l.t.Context(), l.Log, rebuild.Options{Projections: followed})
	l.require(err)
	if rows := l.Rows(); rebuilt.Differ() > 0 || rebuilt.Left != "" || !slices.Equal(rows, live) {
		l.t.Fatalf("%d rows differ from those of a rebuild %s\nrebuilt\n%s\nlive\n%s", rebuilt.Differ(), rebuilt.Left,
			strings.Join(rows, "\n"), strings.Join(live, "\n"))
	}
}

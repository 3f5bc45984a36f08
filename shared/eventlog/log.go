// Package eventlog is one owner's append-only log in Postgres: its events in streams with dense versions and one
// ascending position, the outcome of every command, who is in which room, and what was read of other owners' logs. Each
// owner has a schema of its own name.
//
// Writers meet in a group commit: one goroutine per Log takes all who wait into one transaction under the log's advisory
// lock, so position order is commit order for any number of instances, and a reader of "position > last" skips nothing.
// Nobody is answered before the commit. Readers load single streams (Load), read pages (Read), follow by position in
// transactions of their own (Follow), or relay the log to its topics (Relay).
package eventlog

import (
	"context"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Options say whose log it is and where it lives.
type Options struct {
	// Owner is the service that owns the log, and the name of its schema.
	Owner string
	// Pool is shared with whatever else the process does in this database. Beside it a Log holds one connection that
	// listens, and a Relay one that holds its lease.
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
}

// Open creates the schema and migrates it, under a lock that keeps instances apart.
func Open(ctx context.Context, o Options) (*Log, error) { panic("being written") }

// Run commits what is handed in, listens for what other instances commit, and prunes old outcomes, until ctx ends. What
// is in flight then is finished; what waits gets an error that wraps bus.ErrAway. Commit needs it.
func (l *Log) Run(ctx context.Context) error { panic("being written") }

// Head is the position of the newest event; 0 in an empty log.
func (l *Log) Head(ctx context.Context) (int64, error) { panic("being written") }

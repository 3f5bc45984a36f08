package eventlog

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/pressly/goose/v3"
)

// LogTables are the tables of the log in its owner's schema. All other tables there belong to the owner. Earlier
// releases wrote the tables parked and readings; this release reads both, and moves the contents of parked to
// parked_streams (see inbox.Inbox.ImportParked).
var LogTables = []string{"checkpoints", "consumers", "dropped_letters", "event_rooms", "events", "fences", "incarnations",
	"log_migrations", "member_rooms", "memberships", "outcomes", "owner_migrations", "parked", "parked_streams", "projections",
	"readings", "relay", "room_lists", "timers"}

const sqlOwnerTables = `SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> ALL ($2::text[]) ORDER BY 1`

// OwnerTables returns the tables of the owner's schema that are not the log's. The second result reports whether a
// release that is later than this one has migrated these tables.
func (l *Log) OwnerTables(ctx context.Context) (tables []string, later bool, err error) {
	found, err := l.o.Pool.Query(ctx, sqlOwnerTables, l.o.Owner, LogTables)
	if err == nil {
		tables, err = pgx.CollectRows(found, pgx.RowTo[string])
	}
	if err == nil && l.o.Migrations != nil {
		later, err = l.migratedLater(ctx)
	}
	if err != nil {
		return nil, false, fmt.Errorf("list the tables of %s: %w", l.o.Owner, Unavailable(err))
	}
	return tables, later, nil
}

// migratedLater reports whether the owner's tables have a newer version than the migrations of this release.
func (l *Log) migratedLater(ctx context.Context) (bool, error) {
	files, err := fs.Glob(l.o.Migrations, "*.sql")
	if err != nil {
		return false, err
	}
	var newest int64
	for _, name := range files {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return false, err
		}
		newest = max(newest, version)
	}
	var have int64
	err = l.o.Pool.QueryRow(ctx, l.SQL("SELECT max(version_id) FROM owner.owner_migrations")).Scan(&have)
	return have > newest, err
}

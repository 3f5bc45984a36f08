//go:build integration

package eventlog

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// LogTables must contain every table that the log's migrations create. If LogTables lacked a table, CheckTables would
// report that the table belongs to no projection.
func TestLogTables_AreThoseOfTheMigrations(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	found, err := l.o.Pool.Query(t.Context(), "SELECT tablename FROM pg_tables WHERE schemaname = $1", l.o.Owner)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(found, pgx.RowTo[string])
	require.NoError(t, err)
	tables = slices.DeleteFunc(tables, func(table string) bool { return table == "owner_migrations" })
	require.ElementsMatch(t, LogTables, append(tables, "owner_migrations"))
}

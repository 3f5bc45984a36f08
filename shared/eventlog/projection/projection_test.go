//go:build integration

package projection_test

import (
	"context"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/eventlog/rebuild"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func file(sql string) *fstest.MapFile { return &fstest.MapFile{Data: []byte("-- +goose Up\n" + sql)} }

var migrations = fstest.MapFS{"00001_rows.sql": file(`
CREATE TABLE notes (user_id text NOT NULL, number bigint NOT NULL, text text NOT NULL, PRIMARY KEY (user_id, number));
CREATE TABLE diaries (user_id text PRIMARY KEY, notes bigint NOT NULL);`)}

// diaries declares a projection with two tables: notes has a row for each event, and diaries has a row for each user,
// with the number of the user's newest note.
func diaries() *projection.Projection {
	p := projection.Declare("diaries", projection.Options{Streams: []string{"diary"}, Tables: []string{"notes", "diaries"}})
	note := p.Statement(0, `INSERT INTO notes SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])`)
	diary := p.Statement(1, `INSERT INTO diaries SELECT * FROM unnest($1::text[], $2::bigint[])
ON CONFLICT (user_id) DO UPDATE SET notes = excluded.notes`)
	projection.On(p, func(b *projection.Batch, e projection.Event, m *toyv1.NoteWritten) {
		b.Add(note, e.ID, e.Version, m.Text)
		b.Add(diary, e.ID, e.Version)
	})
	return p
}

func open(t *testing.T, migrations fs.FS) (*eventlog.Log, *pgxpool.Pool) {
	t.Helper()
	pool, err := backend.Postgres{URL: meshtest.Postgres(t)}.Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return reopen(t, pool, migrations), pool
}

func reopen(t *testing.T, pool *pgxpool.Pool, migrations fs.FS) *eventlog.Log {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	l, err := eventlog.Open(t.Context(), eventlog.Options{Owner: "toy", Pool: pool, Catalog: c, Migrations: migrations})
	require.NoError(t, err)
	return l
}

func rows(t *testing.T, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	found, err := pool.Query(t.Context(), sql)
	require.NoError(t, err)
	all, err := pgx.CollectRows(found, pgx.RowTo[string])
	require.NoError(t, err)
	return all
}

const (
	sqlNotes   = `SELECT concat_ws(' ', user_id, number, text) FROM toy.notes ORDER BY 1`
	sqlDiaries = `SELECT concat_ws(' ', user_id, notes) FROM toy.diaries ORDER BY 1`
)

// Several events of a projection's streams are in one batch, together with an event of another stream. The projection
// must write the rows of its own events. A rebuild of its tables must have the same result.
func TestProjection_WritesTheRowsOfItsFunctions(t *testing.T) {
	t.Parallel()
	l, pool := open(t, migrations)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- l.Run(ctx) }()
	write := func(stream string, events ...proto.Message) catalog.Position {
		done, err := l.Commit(t.Context(), eventlog.Write{Appends: []eventlog.Append{{Stream: stream,
			Expected: eventlog.AnyVersion, Actor: "ann", Events: events}}})
		require.NoError(t, err)
		return done.Position
	}
	write("diary:ann", &toyv1.NoteWritten{UserId: "ann", Text: "one"}, &toyv1.NoteWritten{UserId: "ann", Text: "two"})
	write("name:ann", &toyv1.NameTaken{Name: "ann", CircleId: "7"})
	last := write("diary:b%3A1", &toyv1.NoteWritten{UserId: "b:1", Text: "three"})
	go func() { ended <- projection.Follow(ctx, l, diaries()) }() // all events exist, so they become one batch
	t.Cleanup(func() { stop(); <-ended; <-ended })
	require.NoError(t, projection.WaitFor(t.Context(), l, "diaries", last))
	require.Equal(t, []string{"ann 1 one", "ann 2 two", "b%3A1 1 three"}, rows(t, pool, sqlNotes))
	require.Equal(t, []string{"ann 2", "b%3A1 1"}, rows(t, pool, sqlDiaries))

	p := diaries()
	_, err := pool.Exec(t.Context(), "UPDATE toy.diaries SET notes = 9 WHERE user_id = 'ann'")
	require.NoError(t, err)
	rebuilt, err := rebuild.Projections(t.Context(), l, rebuild.Options{Projections: []projection.Applier{p}, Tables: p.Tables()})
	require.NoError(t, err)
	require.EqualValues(t, 1, rebuilt.Differ(), "the row that was changed by hand")
	require.Equal(t, []string{"ann 2", "b%3A1 1"}, rows(t, pool, sqlDiaries))
}

// A table belongs to no projection, or a projection names a table that no migration creates. CheckTables must return an
// error that names the table.
func TestCheckTables_NamesForgottenAndUnknownTables(t *testing.T) {
	t.Parallel()
	l, pool := open(t, migrations)
	ofJobs := func(table string) bool { return strings.HasPrefix(table, "jobs_") }
	check := func(l *eventlog.Log, tables ...string) error {
		return projection.CheckTables(t.Context(), l, ofJobs, projection.Declare("diaries", projection.Options{Tables: tables}))
	}
	require.NoError(t, projection.CheckTables(t.Context(), l, ofJobs, diaries()))
	require.EqualError(t, check(l, "notes"), "table diaries belongs to no projection; add it to the Tables of the projection that "+
		"writes it, or drop it in a migration")
	require.EqualError(t, check(l, "notes", "diaries", "dairies"),
		"projection diaries: there is no table dairies; create it in a migration, or correct the name in Tables")

	// A later release adds the table pins, and a table of jobs, which belongs to no projection. That release must
	// assign pins to a projection. The earlier release, whose migrations do not create the tables, must still start.
	later := maps.Clone(migrations)
	later["00002_pins.sql"] = file("CREATE TABLE pins (id text); CREATE TABLE jobs_waiting (id text);")
	require.EqualError(t, check(reopen(t, pool, later), "notes", "diaries"), "table pins belongs to no projection; add it to the "+
		"Tables of the projection that writes it, or drop it in a migration")
	require.NoError(t, check(reopen(t, pool, migrations), "notes", "diaries"))
}

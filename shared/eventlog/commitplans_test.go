package eventlog

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/eventlog/internal/queryplan"
)

// committing opens a connection by connectToCommit, on which all statements use generic plans. It returns a transaction
// on this connection, which is rolled back when the test ends.
func committing(t *testing.T, l *Log) pgx.Tx {
	t.Helper()
	conn, err := l.connectToCommit(t.Context())
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "SET plan_cache_mode = force_generic_plan")
	require.NoError(t, err)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, tx.Rollback(context.Background()))
		assert.NoError(t, conn.Close(context.Background()))
	})
	return tx
}

// explainKept executes a statement by its generic plan, which PostgreSQL keeps and uses for any arguments. It returns
// that plan.
func explainKept(t *testing.T, tx pgx.Tx, statement string, args ...any) queryplan.Plan {
	t.Helper()
	_, err := tx.Exec(t.Context(), "DEALLOCATE ALL")
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "PREPARE kept AS "+statement)
	require.NoError(t, err)
	execute := "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE kept("
	for i := range args {
		if i > 0 {
			execute += ", "
		}
		execute += fmt.Sprintf("$%d", i+1)
	}
	var plans []struct{ Plan queryplan.Plan }
	require.NoError(t, tx.QueryRow(t.Context(), execute+")",
		append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...).Scan(&plans))
	return plans[0].Plan
}

// However large the log is, the statement that checks a commit must read only one row for each outcome, stream,
// membership, timer and count of rooms on which the commit depends. Statements that insert must read no rows. The test
// executes all statements by generic plans.
func TestPlans_CommittingReadsOneRowForEachThing(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const events, streams, members = 40_000, 400, 16
	fill(t, l, Fill{Events: events, Streams: streams})
	outcomes(t, l, 1, 30_000)
	in(t, l, "ann", 0, streams)
	others(t, l, 30_000)
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.timers (stream, key, generation, due, command, body, command_id)
SELECT 'conversation:' || n, 'k', 1, now() + interval '1 day', 'c', '', 'x' || n FROM generate_series(0, 20000) n`)
	require.NoError(t, err)
	_, err = l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE")
	require.NoError(t, err)
	tx := committing(t, l)

	texts := func(format string) []string {
		all := make([]string, members)
		for n := range all {
			all[n] = fmt.Sprintf(format, n)
		}
		return all
	}
	repeated := func(s string) []string {
		all := make([]string, members)
		for n := range all {
			all[n] = s
		}
		return all
	}
	numbers := make([]int64, members) // used as positions and versions; higher than any in the log
	for n := range numbers {
		numbers[n] = int64(1_000_000 + n)
	}

	versions := func(version int64) []int64 { return slices.Repeat([]int64{version}, members) }

	actors, ids := texts("user%d"), make([]string, members)
	for n := range ids {
		ids[n] = fmt.Sprintf("c1-%d", n+97) // a command that user n has sent
	}
	p := explainKept(t, tx, l.sql.check, actors, ids, texts("conversation:%d"), repeated("ann"), texts("conversation:%d"),
		texts("conversation:%d"), repeated("k"), actors, repeated("conversation"), texts("conversation:%d"), texts("m-%d"))
	// For each write, the check reads an outcome, the newest version of a stream, the newest event about a part, a
	// membership, a timer and a count of rooms. In addition it reads the clock, the head of the log and the incarnation
	// once.
	assert.LessOrEqual(t, p.RowsRead(), int64(6*members+6))
	assert.Empty(t, p.Scanned())
	assert.LessOrEqual(t, p.Pages(), int64(6*members*4+40), "three levels of an index and one page of a table per row")

	now := make([]time.Time, members)
	expires := make([]*time.Time, members)
	for n := range now {
		now[n] = time.Now()
	}
	unique := make([]string, members)
	for n := range unique {
		unique[n] = uuid.NewString()
	}
	bodies := make([][]byte, members)
	for n := range bodies {
		bodies[n] = []byte("body")
	}
	classes, answers := make([]int16, members), make([]bool, members)
	for name, test := range map[string]struct {
		statement string
		args      []any
		rows      int64
	}{
		"events": {l.sql.insertEvents, []any{numbers, texts("conversation:%d"), numbers, unique, repeated("t"), repeated("t"),
			repeated("a"), repeated("c"), repeated("c"), repeated(""), now, classes, texts("conversation:%d"), repeated(""), repeated(""),
			texts("m%d"), answers, repeated(""), bodies, bodies, expires}, 0},
		"rooms": {l.sql.insertRooms, []any{texts("conversation:%d"), numbers}, 0},
		// Each stream has two superseded events, and each of these events is in one room.
		"superseded events": {l.sql.forgetRooms, []any{texts("conversation:%d"), versions(40), versions(42)}, 3 * 2 * members},
		"outcomes": {l.sql.insertOutcomes, []any{texts("user%d"), texts("new%d"), repeated("t"), repeated("s"), repeated("k"), numbers,
			numbers, repeated(""), repeated(""), repeated(""), repeated(""), time.Now()}, 0},
		"rooms that open":  {l.sql.openRooms, []any{texts("conversation:%d"), repeated("new"), numbers, numbers}, 0},
		"rooms that close": {l.sql.closeRooms, []any{texts("conversation:%d"), repeated("ann"), numbers, numbers}, 2 * members},
		"redactions":       {l.sql.redact, []any{texts("conversation:%d"), texts("m-%d"), numbers}, 2 * members},
		"timers that end":  {l.SQL(sqlDropTimers), []any{texts("conversation:%d"), repeated("k")}, 2 * members},
	} {
		p := explainKept(t, tx, test.statement, test.args...)
		// RowsRead counts the rows that a statement finds. It does not count the rows that a statement inserts.
		assert.LessOrEqual(t, p.RowsRead(), test.rows, name)
		assert.Empty(t, p.Scanned(), name)
		if test.rows == 0 {
			assert.Empty(t, p.Tables(), "%s: an insert reads no table", name)
		}
		// For each row, a statement needs at most 16 pages: three levels of up to five indexes, and a page of the
		// table. The limit leaves a margin: it is 36 pages for each row, and 200 for the system catalogs.
		assert.LessOrEqual(t, p.Pages(), int64(members*6*6+200), name)
	}
}

// One page of events is read. The statement must read no more rows than the page has events, wherever the page is and
// however long the stream is. For a topic without events, it must read at most maxSpan rows.
func TestPlans_ReadingAStreamReadsAPage(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const events, page = 40_000, 500
	fill(t, l, Fill{Events: events})
	fill(t, l, Fill{Events: events, Streams: 100, Prefix: "conversation:other"})
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events")
	require.NoError(t, err)
	for _, after := range []int64{0, events / 2, events - page} {
		p := explain(t, l, l.sql.readStream, int64(0), int64(2*events), page, "", "conversation:0", after)
		assert.LessOrEqual(t, p.RowsRead(), int64(page), "after version %d", after)
		assert.Empty(t, p.Scanned(), "after version %d", after)
	}
	p := explain(t, l, l.sql.read, int64(events/2), int64(2*events), page, "")
	assert.LessOrEqual(t, p.RowsRead(), int64(page), "the whole log")
	assert.Empty(t, p.Scanned(), "the whole log")
	p = explain(t, l, l.sql.read, int64(0), int64(maxSpan), page, "file-events")
	assert.LessOrEqual(t, p.RowsRead(), int64(maxSpan), "a topic without events")
	assert.Empty(t, p.Scanned(), "a topic without events")
}

// Each event of a stream contains the whole value, so a decision needs only the newest event and the newest one about
// each of its subjects. Loading the stream must read no other events.
func TestPlans_LoadingTheNewestReadsOneEvent(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, Fill{Events: 40_000})
	fill(t, l, Fill{Events: 10_000, Streams: 100, Prefix: "conversation:other"})
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events")
	require.NoError(t, err)
	tx := committing(t, l) // a commit that decides under the lock loads streams by generic plans
	for what, test := range map[string]struct {
		subjects []string
		rows     int64
	}{
		"the newest":                    {[]string{}, 2},
		"the newest and three subjects": {[]string{"m-3", "m-70", "m-12000"}, 5},
		"a subject without events":      {[]string{"m-none"}, 2},
	} {
		p := explain(t, l, l.SQL(sqlLoadNewest), "conversation:0", int64(0), test.subjects)
		assert.LessOrEqual(t, p.RowsRead(), test.rows, what)
		assert.Empty(t, p.Scanned(), what)
		p = explainKept(t, tx, l.SQL(sqlLoadNewest), "conversation:0", int64(0), test.subjects)
		assert.LessOrEqual(t, p.RowsRead(), test.rows, "%s, by the generic plan", what)
		assert.Empty(t, p.Scanned(), "%s, by the generic plan", what)
		p = explainKept(t, tx, l.sql.load, "conversation:0", int64(0), test.subjects)
		assert.LessOrEqual(t, p.RowsRead(), test.rows, "%s, all events, by the generic plan", what)
	}
}

// in makes a user a member of the conversations with the numbers n for which from <= n < until. The memberships begin
// at position 1.
func in(t *testing.T, l *Log, user string, from, until int) {
	t.Helper()
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT 'conversation:' || n, $1::text, 1, 1 FROM generate_series($2::int, $3::int - 1) n`, user, from, until)
	require.NoError(t, err)
}

// others adds n memberships of other users, with up to ten rooms for each user.
func others(t *testing.T, l *Log, n int) {
	t.Helper()
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT 'conversation:other' || n, 'user' || n / 10, 1, n FROM generate_series(1, $1::int) n`, n)
	require.NoError(t, err)
}

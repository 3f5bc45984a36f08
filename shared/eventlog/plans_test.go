package eventlog

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// plan is a step of a statement that was executed.
type plan struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Removed  float64 `json:"Rows Removed by Filter"`
	Hit      int64   `json:"Shared Hit Blocks"`
	Read     int64   `json:"Shared Read Blocks"`
	Plans    []plan
}

// explain executes a statement as the log does, undoes what it did, and returns its plan.
func explain(t *testing.T, l *Log, statement string, args ...any) (p plan) {
	t.Helper()
	tx, err := l.o.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	var plans []struct{ Plan plan }
	require.NoError(t, tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+statement,
		append([]any{planned}, args...)...).Scan(&plans))
	return plans[0].Plan
}

// walk calls visit for each step.
func (p plan) walk(visit func(plan)) {
	visit(p)
	for _, c := range p.Plans {
		c.walk(visit)
	}
}

// rows returns how many rows of tables and indexes were read, whether found or filtered away.
func (p plan) rows() (rows int64) {
	p.walk(func(p plan) {
		if p.Relation != "" {
			rows += int64((p.Rows + p.Removed) * p.Loops)
		}
	})
	return rows
}

// scanned returns the tables that were read as a whole.
func (p plan) scanned() (tables []string) {
	p.walk(func(p plan) {
		if p.Type == "Seq Scan" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// read returns the tables that were looked into, also where nothing was found.
func (p plan) read() (tables []string) {
	p.walk(func(p plan) {
		if p.Relation != "" && p.Type != "ModifyTable" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// heap returns the tables of which rows were read, not only an index.
func (p plan) heap() (tables []string) {
	p.walk(func(p plan) {
		if p.Relation != "" && p.Type != "Index Only Scan" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

func (p plan) pages() int64 { return p.Hit + p.Read }

// outcomes writes n outcomes of one day.
func outcomes(t *testing.T, l *Log, day, n int) {
	t.Helper()
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.outcomes (actor, command_id, type, stream, kind, version, position, code, text, at)
SELECT 'user' || n % 97, 'c' || $1::int || '-' || n, 'chat.send_message', 'conversation:1', 'committed', 1, 1, '', '',
  now() - $1 * interval '1 day' + n * interval '1 millisecond' FROM generate_series(1, $2::int) n`, day, n)
	require.NoError(t, err)
}

// After months, freed pages hold new rows among old ones. A pass over old outcomes reads those that it removes.
func TestPlans_PruningReadsWhatItRemoves(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const perDay, days = 2_000, 12
	vacuum := func() {
		t.Helper()
		_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.outcomes")
		require.NoError(t, err)
	}
	for day := days; day > 0; day-- {
		outcomes(t, l, day, perDay)
	}
	// Some rows of each page go and make room for younger ones, so that each page spans the whole time.
	for cycle := range 3 {
		_, err := l.o.Pool.Exec(t.Context(), "DELETE FROM chat.outcomes WHERE hashtext(command_id) % 3 = $1", cycle)
		require.NoError(t, err)
		vacuum()
		outcomes(t, l, -cycle, perDay)
		vacuum()
	}
	p := explain(t, l, l.sql.pruneOutcomes, time.Now().Add(-30*24*time.Hour), time.Unix(0, 0))
	assert.LessOrEqual(t, p.pages(), int64(20), "pages read where there is nothing to remove")
	assert.Empty(t, p.scanned())
	removed, err := l.PruneOutcomes(t.Context(), 6*24*time.Hour+time.Hour)
	require.NoError(t, err)
	assert.Positive(t, removed)
	var left int64
	require.NoError(t, l.o.Pool.QueryRow(t.Context(), "SELECT count(*) FROM chat.outcomes WHERE at < now() - interval '6 days 1 hour'").Scan(&left))
	assert.Zero(t, left)
}

// Many are removed in several statements, and all of the same moment are.
func TestPruneOutcomes_OfOneMoment(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	outcomes(t, l, 40, 12_000)
	outcomes(t, l, 1, 10)
	_, err := l.o.Pool.Exec(t.Context(), "UPDATE chat.outcomes SET at = date_trunc('day', at) WHERE at < now() - interval '30 days'")
	require.NoError(t, err)
	removed, err := l.PruneOutcomes(t.Context(), outcomesKept)
	require.NoError(t, err)
	assert.EqualValues(t, 12_000, removed)
}

// Loading a stream for one message reads that message and the version of the newest, not the newest event.
func TestPlans_LoadReadsWhatDecidingNeeds(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, Fill{Events: 20_000, Streams: 10})
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events")
	require.NoError(t, err)
	p := explain(t, l, l.sql.load, "conversation:3", int64(0), []string{"m-13"})
	assert.LessOrEqual(t, p.rows(), int64(3))
	assert.Empty(t, p.scanned())
	p = explain(t, l, l.sql.load, "conversation:3", int64(0), []string{})
	assert.LessOrEqual(t, p.pages(), int64(12), "pages read for the version alone")
	loaded, err := l.Load(t.Context(), Selection{Stream: "conversation:3", Subjects: []string{"m-13"}})
	require.NoError(t, err)
	assert.Len(t, loaded.Events, 1)
	assert.EqualValues(t, 2000, loaded.Version)
}

// The largest parts of events are what people wrote. Deciding does not read them.
func TestPlans_LoadDoesNotReadWhatPeopleWrote(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	large(t, l, "1", 20)
	_, err := l.o.Pool.Exec(t.Context(), `UPDATE chat.events SET personal =
(SELECT '\x00'::bytea || string_agg(decode(md5(version::text || n::text), 'hex'), '') FROM generate_series(1, 2000) n)`)
	require.NoError(t, err)
	ids := make([]string, 20)
	for n := range ids {
		ids[n] = string(rune('0' + n%10))
	}
	tx, err := l.o.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background()) //nolint:errcheck
	// SERIALIZE reads the values as sending them would.
	var plans []struct {
		Serialization struct {
			Hit int64 `json:"Shared Hit Blocks"`
		}
	}
	require.NoError(t, tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, SERIALIZE BINARY, FORMAT JSON) "+l.sql.load,
		planned, "conversation:1", int64(0), ids).Scan(&plans))
	assert.Zero(t, plans[0].Serialization.Hit, "pages of stored texts")
}

// in makes a user a member of streams that fill wrote, from the beginning.
func in(t *testing.T, l *Log, user string, from, until int) {
	t.Helper()
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT 'conversation:' || n, $1::text, 1, 1 FROM generate_series($2::int, $3::int - 1) n`, user, from, until)
	require.NoError(t, err)
}

// The cost of a return depends on what it returns, not on how much was missed in how many rooms.
func TestPlans_ResumeWithManyRoomsIsBounded(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const rooms, perRoom = 2_000, 20
	fill(t, l, Fill{Events: perRoom * rooms, Streams: rooms})
	in(t, l, "heavy", 0, rooms)
	others(t, l, 30_000)
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events, chat.event_rooms, chat.memberships")
	require.NoError(t, err)
	all, after, until := make([]string, rooms), make([]int64, rooms), make([]int64, rooms)
	for n := range rooms {
		all[n], until[n] = fmt.Sprint("conversation:", n), perRoom*rooms
	}
	p := explain(t, l, l.sql.countGaps, all, after, until, 1_001, maxMissed.events)
	assert.LessOrEqual(t, p.rows(), int64(maxMissed.events))
	assert.Empty(t, p.heap())
	p = explain(t, l, l.sql.measureGaps, all[:100], after[:100], until[:100], maxMissed.events)
	assert.LessOrEqual(t, p.rows(), int64(2*maxMissed.events))
	assert.Empty(t, p.scanned())
	p = explain(t, l, l.sql.readGaps, all[:100], after[:100], until[:100], []int64{1})
	assert.LessOrEqual(t, p.rows(), int64(2*maxMissed.events+1))
	assert.Empty(t, p.scanned())
	p = explain(t, l, l.sql.intervalsSince, []string{"heavy"}, []int64{0})
	assert.LessOrEqual(t, p.rows(), int64(rooms+10))
	assert.Empty(t, p.scanned())

	got, err := l.Resume(t.Context(), []Resumer{{User: "heavy"}}, Bounds{})
	require.NoError(t, err)
	assert.Equal(t, maxMissed.events, len(got.Events), "an answer is used up")
	assert.Equal(t, rooms-maxMissed.events/perRoom, len(got.Resumed[0].NotRecovered))
}

// Rooms with few events are given, although many that are too far come before them in the order of rooms.
func TestResume_GivesSmallRoomsBeforeLargeOnes(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, Fill{Events: 15 * 1_100, Streams: 15})
	in(t, l, "heavy", 0, 15)
	fill(t, l, Fill{Events: 300, Streams: 300, Prefix: "conversation:z"})
	fill(t, l, Fill{Events: 10 * 350, Streams: 10, Prefix: "conversation:y"})
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT DISTINCT room, 'heavy', 1, 1 FROM chat.event_rooms WHERE room ~ '[yz]'`)
	require.NoError(t, err)
	got, err := l.Resume(t.Context(), []Resumer{{User: "heavy"}}, Bounds{})
	require.NoError(t, err)
	assert.Equal(t, 15, len(got.Resumed[0].NotRecovered))
	assert.Equal(t, 1+300+10*350, len(got.Events), "and the event that opened all rooms")
}

// A resumer behind one with much is answered as if alone, at once or when it asks again, and is not told that its gap
// is too large.
func TestResume_NobodyPaysForAnotherOne(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, Fill{Events: 50 * 900, Streams: 50})
	in(t, l, "heavy", 0, 50)
	in(t, l, "light", 48, 50)
	left := []Resumer{{User: "heavy"}, {User: "light"}, {User: "nobody"}}
	var answers []Resumed
	for len(left) > 0 {
		got, err := l.Resume(t.Context(), left, Bounds{})
		require.NoError(t, err)
		require.NotEmpty(t, got.Resumed)
		assert.LessOrEqual(t, len(got.Events), maxMissed.events)
		answers, left = append(answers, got.Resumed...), left[len(got.Resumed):]
	}
	assert.Equal(t, 50-11, len(answers[0].NotRecovered))
	assert.Empty(t, answers[1].NotRecovered)
	assert.Len(t, answers[1].Intervals, 2)
	assert.Empty(t, answers[2].NotRecovered)
}

// others makes other users members of as many rooms.
func others(t *testing.T, l *Log, n int) {
	t.Helper()
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT 'conversation:other' || n, 'user' || n / 10, 1, n FROM generate_series(1, $1::int) n`, n)
	require.NoError(t, err)
}

// Connecting reads the user's rooms, all of them by an index alone.
func TestPlans_RoomsReadsAnIndex(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const rooms = 5_000
	in(t, l, "heavy", 0, rooms)
	others(t, l, 50_000)
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.memberships")
	require.NoError(t, err)
	for user, count := range map[string]int64{"heavy": rooms, "user7": 10} {
		p := explain(t, l, l.sql.rooms, []string{user})
		assert.LessOrEqual(t, p.rows(), count+3, user)
		assert.NotContains(t, p.heap(), "memberships", user)
	}
	steps := 0
	explain(t, l, l.sql.rooms, []string{"heavy"}).walk(func(p plan) {
		if p.Type == "Sort" {
			steps++
		}
	})
	assert.Zero(t, steps, "sorts")
}

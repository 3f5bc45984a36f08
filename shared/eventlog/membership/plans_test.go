package membership

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/queryplan"
)

// explain executes a statement, rolls it back, and returns its plan.
func explain(t *testing.T, l *eventlog.Log, statement string, args ...any) queryplan.Plan {
	t.Helper()
	return queryplan.Explain(t, l.Options().Pool, l.SQL(statement), args...)
}

// in makes a user a member of the conversations with the numbers n for which from <= n < until. The conversations have
// the names that fill uses. The memberships begin at position 1.
func in(t *testing.T, l *eventlog.Log, user string, from, until int) {
	t.Helper()
	_, err := l.Options().Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT 'conversation:' || n, $1::text, 1, 1 FROM generate_series($2::int, $3::int - 1) n`, user, from, until)
	require.NoError(t, err)
}

// A user is in 2,000 rooms and has missed more events in them than one result may have. Each statement of Resume must
// read at most two rows for each event that a result may have.
func TestPlans_ResumeWithManyRoomsIsBounded(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const rooms, perRoom = 2_000, 20
	fill(t, l, eventlog.Fill{Events: perRoom * rooms, Streams: rooms})
	in(t, l, "heavy", 0, rooms)
	others(t, l, 30_000)
	_, err := l.Options().Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events, chat.event_rooms, chat.memberships")
	require.NoError(t, err)
	all, after, until := make([]string, rooms), make([]int64, rooms), make([]int64, rooms)
	for n := range rooms {
		all[n], until[n] = fmt.Sprint("conversation:", n), perRoom*rooms
	}
	p := explain(t, l, sqlCountGaps, all, after, until, 1_001, maxMissed.events)
	assert.LessOrEqual(t, p.RowsRead(), int64(maxMissed.events))
	assert.Empty(t, p.Heap())
	p = explain(t, l, sqlMeasureGaps, all[:100], after[:100], until[:100], maxMissed.events)
	assert.LessOrEqual(t, p.RowsRead(), int64(2*maxMissed.events))
	assert.Empty(t, p.Scanned())
	p = explain(t, l, "SELECT body FROM owner.events WHERE position IN ("+sqlGapPositions+") ORDER BY position", all[:100], after[:100], until[:100], []int64{1})
	assert.LessOrEqual(t, p.RowsRead(), int64(2*maxMissed.events+1))
	assert.Empty(t, p.Scanned())
	p = explain(t, l, sqlIntervalsSince, []string{"heavy"}, []int64{0})
	assert.LessOrEqual(t, p.RowsRead(), int64(rooms+10))
	assert.Empty(t, p.Scanned())

	got, err := Resume(t.Context(), l, []Resumer{{User: "heavy"}}, Bounds{})
	require.NoError(t, err)
	assert.Equal(t, maxMissed.events, len(got.Events), "the result has as many events as are allowed")
	assert.Equal(t, rooms-maxMissed.events/perRoom, len(got.Resumed[0].NotRecovered))
}

// A user has missed few events in some rooms and too many in others. The rooms with few events must be recovered,
// although the names of the other rooms come first in the alphabet.
func TestResume_RecoversSmallRoomsBeforeLargeOnes(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, eventlog.Fill{Events: 15 * 1_100, Streams: 15})
	in(t, l, "heavy", 0, 15)
	fill(t, l, eventlog.Fill{Events: 300, Streams: 300, Prefix: "conversation:z"})
	fill(t, l, eventlog.Fill{Events: 10 * 350, Streams: 10, Prefix: "conversation:y"})
	_, err := l.Options().Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT DISTINCT room, 'heavy', 1, 1 FROM chat.event_rooms WHERE room ~ '[yz]'`)
	require.NoError(t, err)
	got, err := Resume(t.Context(), l, []Resumer{{User: "heavy"}}, Bounds{})
	require.NoError(t, err)
	assert.Equal(t, 15, len(got.Resumed[0].NotRecovered))
	assert.Equal(t, 1+300+10*350, len(got.Events), "and the event at which the memberships begin")
}

// Resume is called for several resumers, and the first has many missed events. A call may return results for only the
// first resumers; then the test calls Resume again for the others. Each resumer must get the same result as in a call
// of its own. In particular, all rooms of the user "light" must be recovered.
func TestResume_ResumersAreIndependent(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, eventlog.Fill{Events: 50 * 900, Streams: 50})
	in(t, l, "heavy", 0, 50)
	in(t, l, "light", 48, 50)
	left := []Resumer{{User: "heavy"}, {User: "light"}, {User: "nobody"}}
	var answers []Resumed
	for len(left) > 0 {
		got, err := Resume(t.Context(), l, left, Bounds{})
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

// others adds n memberships of other users, with up to ten rooms for each user.
func others(t *testing.T, l *eventlog.Log, n int) {
	t.Helper()
	_, err := l.Options().Pool.Exec(t.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
SELECT 'conversation:other' || n, 'user' || n / 10, 1, n FROM generate_series(1, $1::int) n`, n)
	require.NoError(t, err)
}

// Rooms must read the rooms of a user from an index alone, without reading the table and without sorting. Once Rooms
// has stored the list of a user with many rooms, it must read only the list and the memberships that changed later.
func TestPlans_RoomsReadsAnIndexOrAList(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, on("1", "c1", started("1", "alice")))
	const rooms = 5_000
	in(t, l, "heavy", 10, 10+rooms)
	others(t, l, 50_000)
	vacuum := func() {
		t.Helper()
		_, err := l.Options().Pool.Exec(t.Context(), "VACUUM ANALYZE chat.memberships, chat.room_lists")
		require.NoError(t, err)
	}
	vacuum()
	for user, count := range map[string]int64{"heavy": rooms, "user7": 10} {
		p := explain(t, l, sqlRooms, []string{user})
		assert.LessOrEqual(t, p.RowsRead(), count+3, user)
		assert.LessOrEqual(t, p.Pages(), count/50+20, "%s: pages; reading the table takes one for each room", user)
	}
	steps := 0
	explain(t, l, sqlRooms, []string{"heavy"}).Walk(func(p queryplan.Plan) {
		if p.Type == "Sort" {
			steps++
		}
	})
	assert.Zero(t, steps, "sorts")

	var before map[string][]string
	for range 2 {
		got, _, err := Rooms(t.Context(), l, []string{"heavy"})
		require.NoError(t, err)
		require.Len(t, got["heavy"], rooms)
		assert.True(t, before == nil || slices.Equal(before["heavy"], got["heavy"]), "the list has the same rooms")
		before = got
	}
	commit(t, l, on("2", "c2", started("2", "heavy")))
	vacuum()
	assert.LessOrEqual(t, explain(t, l, sqlRooms, []string{"heavy"}).RowsRead(), int64(5))
	got, _, err := Rooms(t.Context(), l, []string{"heavy"})
	require.NoError(t, err)
	assert.Len(t, got["heavy"], rooms+1)
}

package eventlog

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/shared/eventlog/internal/queryplan"
)

// explain executes a statement by a plan for its arguments, rolls it back, and returns the plan.
func explain(t *testing.T, l *Log, statement string, args ...any) queryplan.Plan {
	t.Helper()
	return queryplan.Explain(t, l.o.Pool, statement, args...)
}

// outcomes writes n outcomes. The parameter day is their age in days; a negative number means a time in the future.
func outcomes(t *testing.T, l *Log, day, n int) {
	t.Helper()
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.outcomes (actor, command_id, type, stream, kind, version, position, code, text, at)
SELECT 'user' || n % 97, 'c' || $1::int || '-' || n, 'chat.send_message', 'conversation:1', 'committed', 1, 1, '', '',
  now() - $1 * interval '1 day' + n * interval '1 millisecond' FROM generate_series(1, $2::int) n`, day, n)
	require.NoError(t, err)
}

// After months of pruning, a page of the table contains new outcomes among old ones. If there is nothing to remove,
// pruning must still read at most 20 pages. If some outcomes are old enough, pruning must remove all of them.
func TestPlans_PruningReadsOnlyRemovedRows(t *testing.T) {
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
	// Delete some rows of each page and insert newer ones in their place, so that each page contains rows of all ages.
	for cycle := range 3 {
		_, err := l.o.Pool.Exec(t.Context(), "DELETE FROM chat.outcomes WHERE hashtext(command_id) % 3 = $1", cycle)
		require.NoError(t, err)
		vacuum()
		outcomes(t, l, -cycle, perDay)
		vacuum()
	}
	p := explain(t, l, l.sql.pruneOutcomes, time.Now().Add(-30*24*time.Hour), time.Unix(0, 0))
	assert.LessOrEqual(t, p.Pages(), int64(20), "pages read if there is nothing to remove")
	assert.Empty(t, p.Scanned())
	removed, err := l.PruneOutcomes(t.Context(), 6*24*time.Hour+time.Hour)
	require.NoError(t, err)
	assert.Positive(t, removed)
	var left int64
	require.NoError(t, l.o.Pool.QueryRow(t.Context(), "SELECT count(*) FROM chat.outcomes WHERE at < now() - interval '6 days 1 hour'").Scan(&left))
	assert.Zero(t, left)
}

// Many outcomes have the same time, and one statement removes only some of them. PruneOutcomes must remove all of them.
func TestPruneOutcomes_OfOneMoment(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	outcomes(t, l, 40, 12_000)
	outcomes(t, l, 1, 10)
	_, err := l.o.Pool.Exec(t.Context(), "UPDATE chat.outcomes SET at = date_trunc('day', at) WHERE at < now() - interval '30 days'")
	require.NoError(t, err)
	removed, err := l.PruneOutcomes(t.Context(), OutcomesKept)
	require.NoError(t, err)
	assert.EqualValues(t, 12_000, removed)
}

// A stream is loaded for a command about one message. The statement must read only the events about that message, and
// the version of the stream's newest event.
func TestPlans_LoadReadsSelectedRowsOnly(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, Fill{Events: 20_000, Streams: 10})
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events")
	require.NoError(t, err)
	p := explain(t, l, l.sql.load, "conversation:3", int64(0), []string{"m-13"})
	assert.LessOrEqual(t, p.RowsRead(), int64(3))
	assert.Empty(t, p.Scanned())
	p = explain(t, l, l.sql.load, "conversation:3", int64(0), []string{})
	assert.LessOrEqual(t, p.Pages(), int64(12), "pages read for the version alone")
	loaded, err := l.Load(t.Context(), Selection{Stream: "conversation:3", Subjects: []string{"m-13"}})
	require.NoError(t, err)
	assert.Len(t, loaded.Events, 1)
	assert.EqualValues(t, 2000, loaded.Version)
}

// Personal fields, such as the text of a message, are the largest parts of events. A decision does not need them, so
// loading a stream for a decision must not read them.
func TestPlans_LoadReadsNoMessageBodies(t *testing.T) {
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
	// With the option SERIALIZE, EXPLAIN also reads the values that would be sent to a client.
	var plans []struct {
		Serialization struct {
			Hit int64 `json:"Shared Hit Blocks"`
		}
	}
	require.NoError(t, tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, SERIALIZE BINARY, FORMAT JSON) "+l.sql.load,
		planned, "conversation:1", int64(0), ids).Scan(&plans))
	assert.Zero(t, plans[0].Serialization.Hit, "pages of personal fields that were read")
}

// large commits a conversation of alice and the given other users. Each message has 32 KiB.
func large(t *testing.T, l *Log, id string, messages int, others ...string) {
	t.Helper()
	all := []proto.Message{started(id, append(others, "alice")...)}
	for n := range messages {
		all = append(all, sent(id, fmt.Sprint(n), strings.Repeat("x", 32<<10)))
	}
	commit(t, l, on(id, id, all...))
}

//go:build integration

package eventlog

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// A page of due timers reads about as many rows as it has, however many are due.
func TestPlans_APageOfDueTimersReadsThatPage(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	_, err := l.o.Pool.Exec(t.Context(), `INSERT INTO chat.timers (stream, key, generation, due, command, body, command_id)
SELECT 'call:' || n, 'ring', 1, timestamptz '2026-01-01' + n * interval '1 second', 'x', '', n FROM generate_series(1, 30000) n`)
	require.NoError(t, err)
	_, err = l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.timers")
	require.NoError(t, err)
	p := explain(t, l, l.SQL(sqlDueTimers), time.Now().UnixMicro(), 500)
	assert.LessOrEqual(t, p.RowsRead(), int64(500))
	assert.Empty(t, p.Scanned())
	p = explain(t, l, l.SQL(sqlNextTimer))
	assert.LessOrEqual(t, p.RowsRead(), int64(2))
}

// A statement of a rebuild of the timers passes one span of the log, has one page of it in memory, and looks each timer
// up among a large number of outcomes.
func TestPlans_ARebuildOfTimersIsBounded(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	fill(t, l, Fill{Events: 60_000, Streams: 100})
	for day := range 5 {
		outcomes(t, l, day, 10_000)
	}
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events, chat.outcomes")
	require.NoError(t, err)
	s := timerShadow{shadow: shadow{log: l, schema: "chat_shadow"}}
	_, err = l.o.Pool.Exec(t.Context(), "CREATE SCHEMA chat_shadow; "+s.in(sqlNewTimers), pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	p := explain(t, l, s.in(sqlTimerSpan), int64(20_000), timerSpan)
	assert.LessOrEqual(t, p.RowsRead(), int64(timerSpan))
	assert.Empty(t, p.Heap())
	p = explain(t, l, s.in(sqlTimerEvents), int64(20_000), int64(40_000), []string{"chat.message_sent"}, timerPage)
	assert.LessOrEqual(t, p.RowsRead(), int64(timerPage))
	assert.Empty(t, p.Scanned())
	p = explain(t, l, s.in(sqlTimerEvents), int64(20_000), int64(40_000), []string{"chat.other"}, timerPage)
	assert.LessOrEqual(t, p.RowsRead(), int64(timerSpan))
	assert.Empty(t, p.Scanned())

	const n = timerPage
	streams, keys, generations, dues := make([]string, n), make([]string, n), make([]int64, n), make([]time.Time, n)
	commands, bodies, ids := make([]string, n), make([][]byte, n), make([]string, n)
	for i := range n {
		streams[i], keys[i], dues[i], bodies[i], ids[i] = "call:1", fmt.Sprint(i), time.Now(), []byte{}, fmt.Sprint("id", i)
	}
	_, err = l.o.Pool.Exec(t.Context(), "ANALYZE chat.outcomes")
	require.NoError(t, err)
	p = explain(t, l, s.in(sqlFillTimers), streams, keys, generations, dues, commands, bodies, ids,
		time.Now().Add(-time.Hour), catalog.TimerActor)
	assert.LessOrEqual(t, p.RowsRead(), int64(2*n))
	assert.Empty(t, p.Scanned())
}

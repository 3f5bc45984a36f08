//go:build integration

package rebuild

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/queryplan"
)

// A rebuild of the timers reads the log in parts of timerSpan events. The statement that finds the end of a part must
// read at most timerSpan rows. The statement that writes timers must find the outcome of each timer by an index, even
// if the table outcomes is large.
func TestPlans_ARebuildOfTimersIsBounded(t *testing.T) {
	t.Parallel()
	l := logtest.Fresh(t)
	pool := l.Options().Pool
	require.NoError(t, l.FillForTest(t.Context(), eventlog.Fill{Events: 60_000, Streams: 100}))
	_, err := pool.Exec(t.Context(), `INSERT INTO chat.outcomes (actor, command_id, type, stream, kind, version, position, code, text, at)
SELECT 'user' || n % 97, n, 'chat.send_message', 'conversation:1', 'committed', 1, 1, '', '',
  now() - n * interval '1 second' FROM generate_series(1, 50000) n`)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "VACUUM ANALYZE chat.events, chat.outcomes")
	require.NoError(t, err)
	s := timerShadow{shadow: newShadow(l)}
	_, err = pool.Exec(t.Context(), "CREATE SCHEMA chat_shadow; "+s.in(sqlNewTimers), pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	p := queryplan.Explain(t, pool, s.in(sqlTimerSpan), int64(20_000), timerSpan)
	assert.LessOrEqual(t, p.RowsRead(), int64(timerSpan))
	assert.Empty(t, p.Heap())
	const n = timerPage
	streams, keys, generations, dues := make([]string, n), make([]string, n), make([]int64, n), make([]time.Time, n)
	commands, bodies, ids := make([]string, n), make([][]byte, n), make([]string, n)
	for i := range n {
		streams[i], keys[i], dues[i], bodies[i], ids[i] = "call:1", fmt.Sprint(i), time.Now(), []byte{}, fmt.Sprint("id", i)
	}
	_, err = pool.Exec(t.Context(), "ANALYZE chat.outcomes")
	require.NoError(t, err)
	p = queryplan.Explain(t, pool, s.in(sqlFillTimers), streams, keys, generations, dues, commands, bodies, ids,
		time.Now().Add(-time.Hour), catalog.TimerActor)
	assert.LessOrEqual(t, p.RowsRead(), int64(2*n))
	assert.Empty(t, p.Scanned())
}

//go:build integration

package timer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/queryplan"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// 30,000 timers are due, and a page of 500 is read. The statement must read at most 500 rows.
func TestPlans_APageOfDueTimersReadsThatPage(t *testing.T) {
	t.Parallel()
	l := logtest.Fresh(t)
	pool := l.Options().Pool
	_, err := pool.Exec(t.Context(), `INSERT INTO chat.timers (stream, key, generation, due, command, body, command_id)
SELECT 'call:' || n, 'ring', 1, timestamptz '2026-01-01' + n * interval '1 second', 'x', '', n FROM generate_series(1, 30000) n`)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "VACUUM ANALYZE chat.timers")
	require.NoError(t, err)
	p := queryplan.Explain(t, pool, l.SQL(sqlDue), time.Now().UnixMicro(), 500)
	assert.LessOrEqual(t, p.RowsRead(), int64(500))
	assert.Empty(t, p.Scanned())
	p = queryplan.Explain(t, pool, l.SQL(sqlNext))
	assert.LessOrEqual(t, p.RowsRead(), int64(2))
}

//go:build integration

package eventlog

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A statement reads a page of the events with timers in a range of positions. The statement must read no more rows than
// the page has events. If the range has no such events, the statement must read no more rows than the range has
// positions.
func TestPlans_APageOfEventsWithTimersIsBounded(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const span, page = 20_000, 500
	fill(t, l, Fill{Events: 60_000, Streams: 100})
	_, err := l.o.Pool.Exec(t.Context(), "VACUUM ANALYZE chat.events")
	require.NoError(t, err)
	p := explain(t, l, l.SQL(sqlTimerEvents), int64(20_000), int64(40_000), []string{"chat.message_sent"}, page)
	assert.LessOrEqual(t, p.RowsRead(), int64(page))
	assert.Empty(t, p.Scanned())
	p = explain(t, l, l.SQL(sqlTimerEvents), int64(20_000), int64(40_000), []string{"chat.other"}, page)
	assert.LessOrEqual(t, p.RowsRead(), int64(span))
	assert.Empty(t, p.Scanned())
}

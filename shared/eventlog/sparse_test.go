package eventlog

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/bus"
)

// A log of 200,000 events has three of one topic. Every page makes progress, and reads no more rows than its span.
func TestRead_ASparseTopicMakesProgressInEveryPage(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const events = 200_000
	fill(t, l, Fill{Events: events, Streams: 1000})
	_, err := l.o.Pool.Exec(t.Context(), "UPDATE chat.events SET topic = 'rare-events' WHERE position IN (7, 100000, 199999)")
	require.NoError(t, err)
	for name, q := range map[string]Query{"by topic": {Topic: "rare-events"},
		"by topic and partition": {Topic: "rare-events", Partition: 1, Partitions: 3}} {
		pages, after := 0, int64(0)
		var found []int64
		for {
			q.After = after
			page, err := l.Read(t.Context(), q)
			require.NoError(t, err)
			for _, e := range page.Events {
				found = append(found, e.Position)
				if q.Partitions > 0 {
					assert.Equal(t, q.Partition, bus.Partition(e.Stream, q.Partitions))
				}
			}
			if page.Complete == page.Head {
				break
			}
			require.Equal(t, after+maxSpan, page.Complete, "%s: a page covers its span", name)
			after = page.Complete
			pages++
		}
		assert.LessOrEqual(t, pages, events/maxSpan, name)
		if q.Partitions == 0 {
			assert.Equal(t, []int64{7, 100_000, 199_999}, found)
		}
	}
	rows := rowsRead(t, l, l.sql.read, int64(20_000), int64(20_000+maxSpan), 500, "rare-events")
	assert.LessOrEqual(t, rows, int64(maxSpan), "rows read for a page")
}

// rowsRead is how many rows of tables and indexes a statement reads, found or filtered away, by its plan.
func rowsRead(t *testing.T, l *Log, statement string, args ...any) int64 {
	t.Helper()
	var plans []struct{ Plan plan }
	err := pgx.BeginFunc(t.Context(), l.o.Pool, func(tx pgx.Tx) error {
		return tx.QueryRow(context.Background(), "EXPLAIN (ANALYZE, FORMAT JSON) "+statement,
			append([]any{pgx.QueryExecModeExec}, args...)...).Scan(&plans)
	})
	require.NoError(t, err)
	return plans[0].Plan.read()
}

type plan struct {
	Relation string  `json:"Relation Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Removed  float64 `json:"Rows Removed by Filter"`
	Plans    []plan
}

func (p plan) read() (rows int64) {
	if p.Relation != "" {
		rows = int64((p.Rows + p.Removed) * p.Loops)
	}
	for _, c := range p.Plans {
		rows += c.read()
	}
	return rows
}

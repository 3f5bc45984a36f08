package eventlog

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// A log of 200,000 events has only three events of one topic, and a reader reads this topic. Every page but the last
// must cover maxSpan positions, even if it contains none of the three events. A page must read at most maxSpan rows.
func TestRead_ASparseTopicMakesProgressInEveryPage(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	const events = 200_000
	fill(t, l, Fill{Events: events, Streams: 1000})
	_, err := l.o.Pool.Exec(t.Context(), "UPDATE chat.events SET topic = 'rare-events' WHERE position IN (7, 100000, 199999)")
	require.NoError(t, err)
	for name, q := range map[string]Query{"by topic": {Topic: "rare-events"},
		"by topic and partition": {Topic: "rare-events", Partition: 1, Partitions: 3}} {
		pages, after := 0, catalog.Position(0)
		var found []catalog.Position
		for {
			q.After = after
			page, err := l.Read(t.Context(), q)
			require.NoError(t, err)
			for _, e := range page.Events {
				found = append(found, e.Position)
				if q.Partitions > 0 {
					assert.Equal(t, q.Partition, envelope.Partition(e.Stream, q.Partitions))
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
			assert.Equal(t, []catalog.Position{7, 100_000, 199_999}, found)
		}
	}
	p := explain(t, l, l.sql.read, int64(20_000), int64(20_000+maxSpan), 500, "rare-events")
	assert.LessOrEqual(t, p.RowsRead(), int64(maxSpan), "rows read for a page")
	assert.Empty(t, p.Scanned())
}

// A log has no events of one topic, and a reader reads this topic in a range of maxSpan positions. Wherever the range
// is, the statement must read as many database pages in a log of 200,000 events as in a log of 40,000, within 10 %.
func TestPlans_APageOfASparseTopicCostsTheSameInALargerLog(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	pages := func(after int64) int64 {
		t.Helper()
		p := explain(t, l, l.sql.read, after, after+maxSpan, 500, "rare-events")
		assert.Empty(t, p.Scanned())
		return p.Pages()
	}
	fill(t, l, Fill{Events: 40_000, Streams: 1000})
	small := pages(10_000)
	fill(t, l, Fill{Events: 160_000, Streams: 1000})
	for _, after := range []int64{10_000, 100_000, 180_000} {
		assert.InEpsilon(t, small, pages(after), 0.1, "pages read after %d", after)
	}
}

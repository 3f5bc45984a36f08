package projection

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// A new incarnation has no events yet, and a query waits for the incarnation's floor. The wait must end without a
// further event.
func TestWaitFor_ReachesTheBeginningOfAnIncarnationWithoutEvents(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, other := logtest.Running(t, url, counting), logtest.Running(t, url, counting)
	for i := range 3 {
		logtest.Commit(t, l, logtest.Said("1", fmt.Sprint(i)))
	}
	at, err := l.Reincarnate(t.Context(), 500)
	require.NoError(t, err)
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, &counts{}) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, each := range []*eventlog.Log{l, other} {
		require.NoError(t, WaitFor(ctx, each, "counts", at.Position))
	}
	checkCounts(t, l, 3)
	c := logtest.Commit(t, l, logtest.Said("1", "after"))
	require.Equal(t, at.Position+1, c.Position)
	require.NoError(t, WaitFor(ctx, other, "counts", c.Position))
	checkCounts(t, l, 4)
}

// A projection reads the log up to its end. Then an event is committed, and a new incarnation begins, so that the event
// is below the incarnation's floor. The projection must still apply the event.
func TestReincarnate_SkipsNothingThatIsCommittedJustBefore(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	other := logtest.Running(t, url, counting)
	reincarnate := func() {
		_, err := other.Reincarnate(context.Background(), 500)
		assert.NoError(t, err)
	}
	b := &pgtest.Between{First: " FROM " + other.SQL("owner.events") + "\nWHERE position >", Then: other.SQL(sqlFloor), Do: func() {
		_, err := other.Commit(context.Background(), logtest.Said("1", "just before"))
		assert.NoError(t, err)
		reincarnate()
	}}
	l := logtest.Running(t, url, counting, configured(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = b }))
	p := &counts{}
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, p) })
	logtest.Commit(t, l, logtest.Said("1", "before"))
	meshtest.Eventually(t, "the event is applied", func() bool { return p.applied.Load() == 1 })
	b.Arm()
	reincarnate() // the log's head moves without an event
	meshtest.Eventually(t, "nothing is skipped", func() bool { return p.applied.Load() == 2 })
	assert.True(t, b.Done())
}

package eventlog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// lose takes the newest events from a database, as a failover to a replica that was behind does.
func lose(t *testing.T, l *Log, above int64) {
	t.Helper()
	for _, s := range []string{"DELETE FROM chat.events WHERE position > $1", "DELETE FROM chat.event_rooms WHERE position > $1",
		"DELETE FROM chat.outcomes WHERE position > $1",
		"UPDATE chat.relay SET position = least(position, $1), partitions = '{}'"} {
		_, err := l.o.Pool.Exec(t.Context(), s, above)
		require.NoError(t, err)
	}
}

// An instance that lives through a failover knows how far the log was, and commits nothing at positions that were given
// before. The other instances learn of it.
func TestIncarnation_ChangesWhereAnInstanceHasSeenMore(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	for i := range 10 {
		commit(t, l, said("1", fmt.Sprint(i)))
	}
	first := l.Incarnation()
	lose(t, l, 6)
	c := commit(t, l, said("1", "after"))
	assert.Equal(t, int64(10+incarnationMargin+1), c.Position)
	assert.NotEqual(t, first, l.Incarnation())
	meshtest.Eventually(t, "the other instance learns of it", func() bool { return other.Incarnation() == l.Incarnation() })
	assert.Equal(t, c.Position+1, commit(t, other, said("1", "other")).Position)
}

// An operator says that positions up to one were lost.
func TestReincarnate_GoesOnAboveAPosition(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, said("1", "a"))
	at, err := l.Reincarnate(t.Context(), 500)
	require.NoError(t, err)
	assert.Equal(t, int64(500+incarnationMargin), at.Position)
	newest, err := l.Newest(t.Context())
	require.NoError(t, err)
	assert.Equal(t, at, newest)
	assert.Equal(t, at.Position+1, commit(t, l, said("1", "b")).Position)
}

// The floor of an incarnation that has no event yet is a position like any other: queries ask for it, and get an answer
// without waiting for the next event.
func TestWaitFor_ReachesTheFloorOfAnIncarnationWithoutEvents(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url, counting), running(t, url, counting)
	for i := range 3 {
		commit(t, l, said("1", fmt.Sprint(i)))
	}
	at, err := l.Reincarnate(t.Context(), 500)
	require.NoError(t, err)
	during(t, func(ctx context.Context) error { return l.Follow(ctx, &counts{}) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, each := range []*Log{l, other} {
		require.NoError(t, each.WaitFor(ctx, "counts", at.Position))
	}
	checkCounts(t, l, 3)
	c := commit(t, l, said("1", "after"))
	require.Equal(t, at.Position+1, c.Position)
	require.NoError(t, other.WaitFor(ctx, "counts", c.Position))
	checkCounts(t, l, 4)
}

// between calls do once, before the statement then follows the statement first on one session.
type between struct {
	first, then string
	do          func()

	armed atomic.Bool
	last  sync.Map // the last statement, by session
}

func (b *between) note(conn *pgx.Conn, statement string) {
	if last, _ := b.last.Swap(conn, statement); last == b.first && statement == b.then && b.armed.CompareAndSwap(true, false) {
		b.do()
	}
}

func (b *between) TraceQueryStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	b.note(conn, d.SQL)
	return ctx
}

func (*between) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (b *between) TraceBatchStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	for _, q := range d.Batch.QueuedQueries {
		b.note(conn, q.SQL)
	}
	return ctx
}

func (*between) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (*between) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// An event that is committed just before an incarnation begins lies below its floor. A projection that has read the log
// up to there a moment earlier applies it all the same.
func TestReincarnate_SkipsNothingThatIsCommittedJustBefore(t *testing.T) {
	t.Parallel()
	url := database(t)
	other := running(t, url, counting)
	reincarnate := func() {
		_, err := other.Reincarnate(context.Background(), 500)
		assert.NoError(t, err)
	}
	b := &between{first: other.sql.read, then: other.sql.floor, do: func() {
		_, err := other.Commit(context.Background(), said("1", "just before"))
		assert.NoError(t, err)
		reincarnate()
	}}
	l := running(t, url, counting, configured(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = b }))
	p := &counts{}
	during(t, func(ctx context.Context) error { return l.Follow(ctx, p) })
	commit(t, l, said("1", "before"))
	meshtest.Eventually(t, "it has the event", func() bool { return p.applied.Load() == 1 })
	b.armed.Store(true)
	reincarnate() // the log's head moves without an event
	meshtest.Eventually(t, "nothing is skipped", func() bool { return p.applied.Load() == 2 })
	assert.False(t, b.armed.Load())
}

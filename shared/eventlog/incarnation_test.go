package eventlog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/envelope"
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

// lastOf gives the newest records of a broker's topics.
func lastOf(b *broker) func(*Relay) {
	return func(r *Relay) {
		r.o.LastRecords = func(_ context.Context, topic string) (last []*message.Message, err error) {
			for p := range int32(3) {
				if records := b.of(topicPartition{topic, p}); len(records) > 0 {
					last = append(last, records[len(records)-1].Message())
				}
			}
			return last, nil
		}
	}
}

// All instances restart on a database that has lost commits. The relay sees by the topics' newest records that they were
// published: positions go on above them, under a new incarnation, so no reader takes a new event for a repeat.
func TestIncarnation_ChangesWhereATopicIsAheadOfTheLog(t *testing.T) {
	t.Parallel()
	url := database(t)
	b := newBroker()
	var first string
	t.Run("before", func(t *testing.T) {
		l := running(t, url)
		relaying(t, l, b, lastOf(b))
		for i := range 10 {
			commit(t, l, said("1", fmt.Sprint(i)))
		}
		eventually(t, 10*time.Second, "all is published", func() bool { return b.events() == 10 })
		first = l.Incarnation()
	})
	l := running(t, url)
	lose(t, l, 6)
	relaying(t, l, b, lastOf(b))
	eventually(t, 10*time.Second, "a new incarnation begins", func() bool { return l.Incarnation() != first })
	c := commit(t, l, said("1", "after"))
	assert.Equal(t, int64(10+incarnationMargin+1), c.Position)
	assert.Equal(t, int64(7), c.Version)
	eventually(t, 10*time.Second, "it is published", func() bool { return b.events() == 11 })
	ids := map[string]int64{}
	for p := range int32(3) {
		number := int64(0)
		for _, e := range b.of(topicPartition{"chat-events", p}) {
			if e.Position <= number {
				continue // a repeat
			}
			assert.LessOrEqual(t, e.Before, number, "nobody sees a hole that is none: %+v", e)
			number = e.Position
			if e.Position > 10 {
				assert.Equal(t, l.Incarnation(), e.Incarnation)
			}
			if !e.IsPosition() {
				assert.Zero(t, ids[e.ID], "event id %s stands for two", e.ID)
				ids[e.ID] = e.Position
			}
		}
	}
	page, err := l.Read(t.Context(), Query{After: 6})
	require.NoError(t, err)
	assert.Equal(t, l.Incarnation(), page.Incarnation)
	require.Len(t, page.Events, 1)
	assert.Equal(t, "after", page.Events[0].Cause)
}

// The lost positions were given to other events before anybody noticed.
func TestIncarnation_ChangesWhereTheLogHasAnotherEvent(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	commit(t, l, said("1", "a"))
	e := envelope.Event{ID: "0b1c6b60-3f0c-5f0e-8a41-2f6f0d3a9b17", Type: "chat.message_sent", Source: "chat", Stream: "conversation:1",
		Version: 1, Position: 1, Time: time.Now(), Class: 1, Cause: "lost", Incarnation: l.Incarnation()}
	b.records[topicPartition{"chat-events", 0}] = []envelope.Event{e}
	first := l.Incarnation()
	relaying(t, l, b, lastOf(b))
	eventually(t, 10*time.Second, "a new incarnation begins", func() bool { return l.Incarnation() != first })
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
	eventually(t, 10*time.Second, "the other instance learns of it", func() bool { return other.Incarnation() == l.Incarnation() })
	assert.Equal(t, c.Position+1, commit(t, other, said("1", "other")).Position)
}

// Nothing is lost where instances only commit, read and restart.
func TestIncarnation_StaysOtherwise(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	first := l.Incarnation()
	b := newBroker()
	relaying(t, l, b, lastOf(b))
	relaying(t, other, b, lastOf(b))
	for i := range 100 {
		commit(t, []*Log{l, other}[i%2], said(fmt.Sprint(i%5), fmt.Sprint(i)))
		if i%20 == 10 {
			require.NoError(t, killLeader(t.Context(), l))
		}
		_, err := l.Newest(t.Context())
		require.NoError(t, err)
	}
	eventually(t, 20*time.Second, "all is published", func() bool { return b.events() == 100 })
	assert.Equal(t, first, l.Incarnation())
	assert.Equal(t, first, other.Incarnation())
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

// An event that is committed just before an incarnation begins lies below its floor. A projection and a relay that
// have read the log up to there a moment earlier apply and publish it all the same.
func TestReincarnate_SkipsNothingThatIsCommittedJustBefore(t *testing.T) {
	t.Parallel()
	for name, follow := range map[string]func(t *testing.T, l *Log) (events func() int){
		"projection": func(t *testing.T, l *Log) func() int {
			p := &counts{}
			during(t, func(ctx context.Context) error { return l.Follow(ctx, p) })
			return func() int { return int(p.applied.Load()) }
		},
		"relay": func(t *testing.T, l *Log) func() int {
			b := newBroker()
			relaying(t, l, b)
			return b.events
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := database(t)
			other := running(t, url, counting)
			reincarnate := func() {
				_, err := other.Reincarnate(context.Background(), 500)
				assert.NoError(t, err)
			}
			then := map[string]string{"projection": other.sql.floor, "relay": other.sql.head}[name]
			b := &between{first: other.sql.read, then: then, do: func() {
				_, err := other.Commit(context.Background(), said("1", "just before"))
				assert.NoError(t, err)
				reincarnate()
			}}
			l := running(t, url, counting, configured(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = b }))
			events := follow(t, l)
			commit(t, l, said("1", "before"))
			eventually(t, time.Minute, "it has the event", func() bool { return events() == 1 })
			b.armed.Store(true)
			reincarnate() // the log's head moves without an event
			eventually(t, time.Minute, "nothing is skipped", func() bool { return events() == 2 })
			assert.False(t, b.armed.Load())
		})
	}
}

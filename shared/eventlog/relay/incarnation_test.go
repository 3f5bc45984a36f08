package relay

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// margin is the number of positions that a new incarnation leaves unused above the highest position that was seen.
const margin = 1_000_000

// lose deletes the events above a position from the log's database. A failover to a replica that lags behind has the
// same effect.
func lose(t *testing.T, l *eventlog.Log, above int64) {
	t.Helper()
	for _, s := range []string{"DELETE FROM chat.events WHERE position > $1", "DELETE FROM chat.event_rooms WHERE position > $1",
		"DELETE FROM chat.outcomes WHERE position > $1",
		"UPDATE chat.relay SET position = least(position, $1), partitions = '{}'"} {
		_, err := l.Options().Pool.Exec(t.Context(), s, above)
		require.NoError(t, err)
	}
}

// lastOf returns an option that makes a relay read the newest records of a broker's topics.
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

// publishTen runs an instance until it has published ten events, and returns the incarnation of its log.
func publishTen(t *testing.T, url string, b *broker) (incarnation string) {
	t.Helper()
	t.Run("before", func(t *testing.T) {
		l := running(t, url)
		relaying(t, l, b, lastOf(b))
		for i := range 10 {
			commit(t, l, said("1", fmt.Sprint(i)))
		}
		meshtest.Eventually(t, "all is published", func() bool { return b.events() == 10 })
		incarnation = l.Incarnation()
	})
	return incarnation
}

// All instances restart on a database that has lost commits. The newest records of the topics show the relay that the
// lost commits were published. The relay must begin a new incarnation, with positions above those of the lost commits:
// otherwise readers would drop new events as repeats.
func TestIncarnation_ChangesIfATopicIsAheadOfTheLog(t *testing.T) {
	t.Parallel()
	url := database(t)
	b := newBroker()
	first := publishTen(t, url, b)
	l := running(t, url)
	lose(t, l, 6)
	relaying(t, l, b, lastOf(b))
	meshtest.Eventually(t, "a new incarnation begins", func() bool { return l.Incarnation() != first })
	c := commit(t, l, said("1", "after"))
	assert.Equal(t, catalog.Position(10+margin+1), c.Position)
	assert.Equal(t, catalog.Version(7), c.Version)
	meshtest.Eventually(t, "the event is published", func() bool { return b.events() == 11 })
	ids := map[string]catalog.Position{}
	for p := range int32(3) {
		number := catalog.Position(0)
		for _, e := range b.of(topicPartition{"chat-events", p}) {
			if e.Position <= number {
				continue // a repeated record
			}
			assert.LessOrEqual(t, e.Before, number, "no reader sees a gap where no event is missing: %+v", e)
			number = e.Position
			if e.Position > 10 {
				assert.Equal(t, l.Incarnation(), e.Incarnation)
			}
			if !e.IsPosition() {
				assert.Zero(t, ids[e.ID], "two events have the id %s", e.ID)
				ids[e.ID] = e.Position
			}
		}
	}
	page, err := l.Read(t.Context(), eventlog.Query{After: 6})
	require.NoError(t, err)
	assert.Equal(t, l.Incarnation(), page.Incarnation)
	require.Len(t, page.Events, 1)
	assert.Equal(t, "after", page.Events[0].Cause)
}

// All instances restart on a database that has lost commits, and the broker does not answer at first. The relay must
// try again, instead of treating the topics as missing.
func TestIncarnation_ChangesAlsoIfTheBrokerAnswersLate(t *testing.T) {
	t.Parallel()
	url := database(t)
	b := newBroker()
	first := publishTen(t, url, b)
	lose(t, instance(t, url), 6)
	l := running(t, url)
	var failed, asked sync.Map // topics for which one request has timed out
	relaying(t, l, b, lastOf(b), func(r *Relay) {
		last := r.o.LastRecords
		timeout := fmt.Errorf("read from the broker: %w", context.DeadlineExceeded)
		r.o.LastRecords = func(ctx context.Context, topic string) ([]*message.Message, error) {
			if _, before := failed.LoadOrStore(topic, true); !before {
				return nil, timeout
			}
			return last(ctx, topic)
		}
		r.o.Partitions = func(_ context.Context, topic string) (int32, error) {
			if _, fails := failed.Load(topic); fails {
				if _, before := asked.LoadOrStore(topic, true); !before {
					return 0, timeout
				}
			}
			return 3, nil
		}
	})
	meshtest.Eventually(t, "a new incarnation begins", func() bool { return l.Incarnation() != first })
}

// Events were lost, and their positions were given to other events before anybody noticed the loss. In a topic, the
// relay finds a record whose position belongs to another event in the log. The relay must begin a new incarnation.
func TestIncarnation_ChangesIfTheLogHasAnotherEvent(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	b := newBroker()
	commit(t, l, said("1", "a"))
	e := envelope.Event{ID: "0b1c6b60-3f0c-5f0e-8a41-2f6f0d3a9b17", Type: "chat.message_sent", Source: "chat", Stream: "conversation:1",
		Version: 1, Position: 1, Time: time.Now(), Class: 1, Cause: "lost", Incarnation: l.Incarnation()}
	b.records[topicPartition{"chat-events", 0}] = []envelope.Event{e}
	first := l.Incarnation()
	relaying(t, l, b, lastOf(b))
	meshtest.Eventually(t, "a new incarnation begins", func() bool { return l.Incarnation() != first })
}

// Instances commit and read, and their relays crash, but no event is lost. The incarnation must stay the same.
func TestIncarnation_DoesNotChangeOtherwise(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, other := running(t, url), running(t, url)
	first := l.Incarnation()
	b := newBroker()
	relaying(t, l, b, lastOf(b))
	relaying(t, other, b, lastOf(b))
	for i := range 100 {
		commit(t, []*eventlog.Log{l, other}[i%2], said(fmt.Sprint(i%5), fmt.Sprint(i)))
		if i%20 == 10 {
			require.NoError(t, killLeader(t.Context(), l))
		}
		_, err := l.Newest(t.Context())
		require.NoError(t, err)
	}
	meshtest.Eventually(t, "all is published", func() bool { return b.events() == 100 })
	assert.Equal(t, first, l.Incarnation())
	assert.Equal(t, first, other.Incarnation())
}

// A relay reads the log up to its end. Then an event is committed, and a new incarnation begins, so that the event is
// below the incarnation's floor. The relay must still publish the event.
func TestRelay_SkipsNothingThatIsCommittedJustBeforeAnIncarnation(t *testing.T) {
	t.Parallel()
	url := database(t)
	other := running(t, url)
	reincarnate := func() {
		_, err := other.Reincarnate(context.Background(), 500)
		assert.NoError(t, err)
	}
	x := &pgtest.Between{First: "ORDER BY position LIMIT $3", Then: "ORDER BY i.number DESC LIMIT 1", Do: func() {
		_, err := other.Commit(context.Background(), said("1", "just before"))
		assert.NoError(t, err)
		reincarnate()
	}}
	l := running(t, url, func(o *eventlog.Options) {
		config := o.Pool.Config()
		config.ConnConfig.Tracer = x
		p, err := pgxpool.NewWithConfig(t.Context(), config)
		require.NoError(t, err)
		t.Cleanup(p.Close)
		o.Pool = p
	})
	b := newBroker()
	relaying(t, l, b)
	commit(t, l, said("1", "before"))
	meshtest.Eventually(t, "the event is published", func() bool { return b.events() == 1 })
	x.Arm()
	reincarnate() // the log's head moves without an event
	meshtest.Eventually(t, "nothing is skipped", func() bool { return b.events() == 2 })
	assert.True(t, x.Done())
}

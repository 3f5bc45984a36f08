//go:build integration

package consume_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner/consume"
)

// A new service consumes a topic with the option FromNow. The service must ignore the events that were published before
// its first start.
func TestConsume_FromNow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.since = consume.FromNow()
	w.source.say("7", "old", "old")
	w.start()
	w.eventually("a checkpoint is stored", func() bool { return w.number("SELECT count(*) FROM notification.checkpoints") > 0 })
	w.source.say("7", "new")
	w.awaitRaised("7", 3)
}

// A new service consumes a topic with the option FromTime. The service must begin with the first event that has the
// time of the option or a later time.
func TestConsume_FromTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	events := w.source.chained(w.source.append("7", make([]string, 40)...)...)
	begin := time.Now().Add(-time.Hour)
	w.source.mu.Lock()
	for i := range events {
		events[i].Time = begin.Add(time.Duration(i-25) * time.Minute)
		w.source.log[i].Time = events[i].Time
	}
	w.source.mu.Unlock()
	w.source.publish(events...)
	w.since = consume.FromTime(begin)
	w.start()
	w.awaitRaised("7", upTo(40)[25:]...)
}

// An earlier release has applied some events and parked one, and has stored both facts in its own tables. After an
// upgrade, the consumer must not apply the applied events again, and must apply the other events once.
func TestConsume_UpgradesFromAnEarlierRelease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start().stop() // the first start creates the schema
	for _, c := range []string{"7", "8", "9"} {
		w.source.chained(w.source.append(c, "a", "b", "c", "d")...) // positions 1 to 4, 5 to 8 and 9 to 12
	}
	parked := w.source.log[9] // version 2 of conversation 9
	record := parked.Record(topic)
	record.Body = nil
	raw, err := proto.Marshal(record)
	require.NoError(t, err)
	for _, statement := range []string{"ALTER TABLE notification.readings DISABLE TRIGGER readings_are_closed",
		`INSERT INTO notification.readings (source, stream, version) VALUES ('chat', 'topic chat-events', 2),
		('chat', 'conversation:7', 3), ('chat', 'conversation:8', 4), ('chat', 'conversation:9', 1)`} {
		_, err := w.pool.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	_, err = w.pool.Exec(t.Context(), `INSERT INTO notification.parked (source, stream, version, record, error, at)
		VALUES ('chat', 'conversation:9', 2, $1, 'requested by the test', now())`, raw)
	require.NoError(t, err)
	w.source.publishPosition()
	i := w.start()
	w.stored()
	require.Equal(t, []catalog.Version{4}, w.raised("bob", "7"))
	require.Empty(t, w.raised("bob", "8"))
	require.Empty(t, w.raised("bob", "9"))
	done, err := i.consumer.Resolve(t.Context(), "conversation:9", 2, false)
	require.NoError(t, err)
	require.Zero(t, done.Left)
	require.Equal(t, []catalog.Version{2, 3, 4}, w.raised("bob", "9"))
	require.Zero(t, w.number("SELECT count(*) FROM notification.parked"))
	i.stop()
	w.start()
	w.source.say("7", "more")
	w.awaitRaised("7", 4, 5)
}

// A release declares 6 partitions, but the broker has 3. The consumer must use the number that the records contain,
// also for events that it reads from the owner's log. Later the topic grows to 6 partitions. Each event must be applied
// once.
func TestConsume_ABrokerHasFewerPartitionsThanDeclared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	names := conversations(20)
	for _, c := range names {
		w.source.chained(w.source.append(c, "before the topic's oldest record")...)
	}
	start := func() *instance { return w.startWith(func(o *consume.Options) { o.Partitions = 6 }) }
	first := start()
	for _, c := range names {
		w.source.say(c, "x")
		w.source.chained(w.source.append(c, "missing")...)
		w.source.say(c, "x")
	}
	w.stored()
	first.stop()
	start()
	for _, c := range names {
		w.source.say(c, "x")
	}
	w.stored()
	for _, c := range names {
		require.Equal(t, upTo(5), w.raised("bob", c), "conversation %s", c)
	}
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints WHERE partitions = 3"))
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints"))
	meshtest.GrowTopic(t, w.kafka, topic, 6)
	w.source.grow(6)
	for _, c := range names {
		w.source.say(c, "x")
	}
	w.stored()
	for _, c := range names {
		require.Equal(t, upTo(6), w.raised("bob", c), "conversation %s", c)
	}
}

//go:build integration

package consume_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Each event has its effects once and in order, although the topic repeats some events, lacks others, and delivers
// others late.
func TestConsume_EachEventOnceAndInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	events := w.source.chained(w.source.append("7", make([]string, 30)...)...)
	w.source.publish(events[3:5]...)
	w.source.publish(events[3:5]...)
	w.source.publish(events[0:2]...)
	w.source.publish(events[20:30]...)
	w.source.publish(events[10:21]...)
	w.awaitRaised("7", upTo(30)...)
	w.stored()
	require.Equal(t, upTo(30), w.raised("bob", "7"))
}

// In normal operation no event is read from the owner's log, and events without effects lead to no rows and no
// transactions.
func TestConsume_EventsWithoutEffectsCostNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	for _, c := range conversations(20) {
		w.source.say(c, "hello", "quiet", "quiet")
	}
	w.stored()
	const quiet = 4000
	before := w.number("SELECT count(*) FROM notification.events")
	bodies := make([]string, quiet/20)
	for i := range bodies {
		bodies[i] = "quiet"
	}
	transactions, others := w.sent.transactions.Load(), w.sent.others.Load()
	for _, c := range conversations(20) {
		w.source.say(c, bodies...)
	}
	w.stored()
	// The bounds are far above one transaction per second, because the duration of the test varies.
	require.Less(t, w.sent.transactions.Load()-transactions, int64(quiet/10), "transactions for events without effects")
	require.Less(t, w.sent.others.Load()-others, int64(quiet/2), "statements for events without effects")
	require.Zero(t, w.source.reads.Load(), "pages of the owner's log were read")
	require.Equal(t, before, w.number("SELECT count(*) FROM notification.events"))
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints"))
	require.Zero(t, w.number("SELECT count(*) FROM notification.readings"))
	require.Equal(t, int64(60+quiet), w.reacted.Load())
}

// One event with 2,000 recipients is applied in transactions of 256 streams. If an instance is killed in between, the
// next instance applies the rest.
func TestConsume_SplitsAnEventWithManyRecipients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	w.source.say("7", "first", "many 2000", "last")
	w.stored()
	require.EqualValues(t, 2000+2, w.number("SELECT count(*) FROM notification.events"))
	require.EqualValues(t, 2000, w.number("SELECT count(DISTINCT stream) FROM notification.events WHERE stream LIKE 'notifications:r%'"))
	require.LessOrEqual(t, w.number(`SELECT max(n) FROM (SELECT count(DISTINCT stream) AS n FROM notification.events
		GROUP BY xmin::text) written`), int64(256))
	require.Equal(t, []catalog.Version{1, 3}, w.raised("bob", "7"))
}

// Events that a topic has deleted before the service first reads it are read from the owner's log.
func TestConsume_ReadsTheLogWhereTheTopicIsAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range conversations(20) {
		w.source.chained(w.source.append(c, make([]string, 100)...)...)
	}
	w.source.publishPosition()
	w.start()
	for _, c := range conversations(20) {
		w.awaitRaised(c, upTo(100)...)
	}
	reads := w.source.reads.Load()
	for _, c := range conversations(20) {
		w.source.say(c, "more")
	}
	w.stored()
	require.Equal(t, reads, w.source.reads.Load())
}

// An instance is killed between the commit and the acknowledgement. The events are delivered again and have no further
// effect.
func TestConsume_KilledBetweenCommitAndAcknowledgement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.start()
	first.lost.Store(true)
	for _, c := range conversations(9) {
		w.source.say(c, "a", "many 300", "b")
	}
	for _, c := range conversations(9) {
		w.awaitRaised(c, 1, 3)
	}
	first.stop()
	w.start()
	for _, c := range conversations(9) {
		w.source.say(c, "c")
	}
	w.stored()
	for _, c := range conversations(9) {
		require.Equal(t, []catalog.Version{1, 3, 4}, w.raised("bob", c))
		require.Equal(t, []catalog.Version{2}, w.raised("r0", c))
	}
}

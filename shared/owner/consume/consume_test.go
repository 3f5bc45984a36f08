//go:build integration

package consume_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// A topic repeats some events, lacks some, and contains some out of order. Each event must have its effects once, and
// the effects must be in the order of the events.
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

// A topic contains every event, and most events have no effects. The consumer must not read the owner's log. Events
// without effects must add no rows, and only few transactions.
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
	// The consumer saves its checkpoints about once per second. The bounds are far higher, because the duration of the
	// test varies.
	require.Less(t, w.sent.transactions.Load()-transactions, int64(quiet/10), "transactions for events without effects")
	require.Less(t, w.sent.others.Load()-others, int64(quiet/2), "statements for events without effects")
	require.Zero(t, w.source.reads.Load(), "pages of the owner's log were read")
	require.Equal(t, before, w.number("SELECT count(*) FROM notification.events"))
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints"))
	require.Zero(t, w.number("SELECT count(*) FROM notification.readings"))
	require.Equal(t, int64(60+quiet), w.reacted.Load())
}

// One event has 2,000 recipients, and each recipient has a stream. The effects must be committed in several
// transactions with at most 256 streams each.
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

// The first events of a topic were deleted before a service reads the topic for the first time. The service must read
// them from the owner's log, and later events from the topic alone.
func TestConsume_ReadsTheLogForEventsThatTheTopicLacks(t *testing.T) {
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

// An instance is killed after it has committed the effects of events and before it has acknowledged the events. The
// next instance gets the events again. The repeated events must have no further effect.
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

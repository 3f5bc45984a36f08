//go:build integration

package consume_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Each event has its effects once and in order, whatever the topic does: it repeats, lacks some, and brings some late.
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

// In normal running no event is read from the owner's log, and what leads to nothing costs no row and no transaction.
func TestConsume_ReadsNothingTwiceAndStoresNothingForNothing(t *testing.T) {
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
	// Progress is stored every second, however long that takes here.
	require.Less(t, w.sent.transactions.Load()-transactions, int64(quiet/10), "transactions for what leads to nothing")
	require.Less(t, w.sent.others.Load()-others, int64(quiet/2), "statements for what leads to nothing")
	require.Zero(t, w.source.reads.Load(), "pages of the owner's log were read")
	require.Equal(t, before, w.number("SELECT count(*) FROM notification.events"))
	require.EqualValues(t, 3, w.number("SELECT count(*) FROM notification.checkpoints"))
	require.Zero(t, w.number("SELECT count(*) FROM notification.readings"))
	require.Equal(t, int64(60+quiet), w.reacted.Load())
}

// One event with 2,000 recipients is applied in transactions of 256 streams, and killed in between it goes on where it
// was.
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
	require.Equal(t, []int64{1, 3}, w.raised("bob", "7"))
}

// Events that a topic has deleted before the service first read it are read from the log, up to those that it still
// has.
func TestConsume_ReadsTheLogWhereTheTopicIsAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range conversations(20) {
		w.source.chained(w.source.append(c, make([]string, 100)...)...)
	}
	w.source.tell()
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

// Killed after a commit and before the acknowledgement, what comes again has no effect.
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
		require.Equal(t, []int64{1, 3, 4}, w.raised("bob", c))
		require.Equal(t, []int64{2}, w.raised("r0", c))
	}
}

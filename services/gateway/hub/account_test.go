package hub_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
)

// waiting takes all frames that wait for the connections, and returns their size in bytes.
func waiting(all ...*hub.Conn) (bytes int) {
	for _, c := range all {
		for _, frame := range fake.Take(c, 100_000) {
			bytes += len(frame)
		}
	}
	return bytes
}

func (w *world) connections(t *testing.T, n int, user string, rooms []string, position catalog.Position) (all []*hub.Conn) {
	for range n {
		all = append(all, w.connect(t, user, rooms, position))
	}
	return all
}

func (w *world) long(n, bytes int) *hub.Event {
	return w.event(w.chat.Append("alice", "chat.message_sent",
		fmt.Sprintf(`{"conversation_id":"g","message_id":"%d","body":%q}`, n, strings.Repeat("x", bytes))))
}

// A user has 60 connections that nobody reads. The total size of the data that waits for these connections must stay
// within twice the limit of one user: once the limit is reached, each connection may still hold an equal share of the
// limit. Only connections of this user may be closed.
func TestAccount_UnreadConnectionsShareOneBound(t *testing.T) {
	t.Parallel()
	const bound = 200_000
	w := newWorld(t, hub.Options{Limits: hub.Limits{UserBytes: bound}})
	w.deliver(w.began(`["eve","bob"]`))
	stuck := w.connections(t, 60, "eve", []string{"conversation:g"}, 1)
	bob := w.connect(t, "bob", []string{"conversation:g"}, 1)
	const events = 50
	got := 0
	for n := range events { // each event has 1,000 bytes for each of 60 connections, 3 MB in all
		w.shard.Deliver(w.long(n, 1000))
		got += len(seen(t, bob))
	}
	require.Equal(t, events, got, "bob gets everything")
	require.False(t, bob.Ended())
	for _, c := range stuck {
		if reason, ended := c.Reason(); ended {
			require.Equal(t, hub.Slow, reason)
		}
	}
	require.LessOrEqual(t, waiting(stuck...), 2*bound)
	for _, c := range stuck {
		w.hub.Remove(c)
	}
	// The bytes of the removed connections no longer count, so 150 kB may wait for a new connection of the user. Each
	// event has 1,000 bytes of text and about 200 bytes of other fields.
	again := w.connect(t, "eve", []string{"conversation:g"}, w.shard.BufferedAfter()+1+events)
	for n := range 120 {
		w.shard.Deliver(w.long(events+n, 1000))
	}
	require.False(t, again.Ended())
}

// Some connections of a user are not read, and hold all bytes that may wait for the user. Another connection of this
// user is read, and must get all events and stay open.
func TestAccount_AReadConnectionContinuesBesideUnreadOnes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{UserBytes: 100_000, Bytes: 60_000}})
	w.deliver(w.began(`["eve"]`))
	stuck := w.connections(t, 3, "eve", []string{"conversation:g"}, 1)
	healthy := w.connect(t, "eve", []string{"conversation:g"}, 1)
	got := 0
	for n := range 200 {
		w.shard.Deliver(w.long(n, 2000))
		if n%3 == 2 {
			got += len(seen(t, healthy))
		}
	}
	got += len(seen(t, healthy))
	require.Equal(t, 200, got)
	require.False(t, healthy.Ended())
	for _, c := range stuck {
		reason, _ := c.Reason()
		require.Equal(t, hub.Slow, reason)
	}
}

// A user does not read answers. The bytes of the answers that wait must be bounded: further answers to this user are
// refused, and answers to other users are not.
func TestAccount_AnswersThatAreNotReadAreBounded(t *testing.T) {
	t.Parallel()
	const bound, size = 100_000, 9000
	w := newWorld(t, hub.Options{Limits: hub.Limits{UserBytes: bound}})
	eve := w.connections(t, 8, "eve", nil, 0)
	bob := w.connect(t, "bob", nil, 0)
	answer := []byte(strings.Repeat("x", size))
	free, queued := 0, 0
	for range 8 {
		for _, c := range eve {
			if c.Reply(answer, func() { free++ }) {
				queued++
			}
		}
	}
	require.GreaterOrEqual(t, queued, bound/(size+500))
	require.LessOrEqual(t, queued, 2*bound/size)
	require.Zero(t, free, "no answer was taken from a queue yet")
	for _, c := range eve {
		require.False(t, c.Ended())
	}
	require.True(t, bob.Reply(answer, nil))
	require.LessOrEqual(t, waiting(eve...), 2*bound)
	require.Equal(t, queued, free)
	require.True(t, eve[0].Reply(answer, nil), "once answers are read, others may wait")
	for _, c := range eve {
		w.hub.Remove(c)
	}
	require.True(t, w.connect(t, "eve", nil, 0).Reply([]byte(strings.Repeat("x", bound-1000)), nil))
}

// A user resumes on many connections and does not read them. The total size of the missed events that wait for these
// connections must be bounded. On a connection whose missed events would exceed the bound, the room must not be
// recovered.
func TestAccount_BoundsMissedEventsOfAUser(t *testing.T) {
	t.Parallel()
	const bound = 100_000
	w := newWorld(t, hub.Options{Limits: hub.Limits{UserBytes: bound}})
	missed := w.sized(10, 3000)
	back := func(user string) (c *hub.Conn, notRecovered bool) {
		c, err := w.hub.Add(user, frame.JSON)
		require.NoError(t, err)
		c.Greet(func(g hub.Greeting) frame.Frame { notRecovered = len(g.NotRecovered) > 0; return greeting(g) })
		require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 11, Missed: missed}))
		for _, owner := range w.chat.Catalog.Logs() {
			w.hub.Shard(owner).Attach(c, hub.Attachment{})
		}
		return c, notRecovered
	}
	var eve []*hub.Conn
	far := 0
	for range 20 { // 30,000 bytes for each connection
		c, notRecovered := back("eve")
		if eve = append(eve, c); notRecovered {
			far++
		}
	}
	require.Equal(t, 17, far)
	bob, notRecovered := back("bob")
	require.False(t, notRecovered)
	require.Greater(t, waiting(bob), 30_000)
	require.LessOrEqual(t, waiting(eve...), 2*bound)
	_, notRecovered = back("eve")
	require.False(t, notRecovered, "events that were read no longer count")
}

// Frames that the writer has taken but not written yet must still count against the user's limit of bytes.
func TestAccount_CountsFramesThatAreBeingWritten(t *testing.T) {
	t.Parallel()
	const bound = 50_000
	w := newWorld(t, hub.Options{Limits: hub.Limits{UserBytes: bound}})
	eve := w.connections(t, 2, "eve", nil, 0)
	answer := []byte(strings.Repeat("x", 40_000))
	require.True(t, eve[0].Reply(answer, nil))
	_, _, more := eve[0].Next(nil, bound)
	require.True(t, more)
	require.False(t, eve[1].Reply(answer, nil), "the frame that the other connection is writing counts")
	_, _, more = eve[0].Next(nil, bound)
	require.False(t, more)
	require.True(t, eve[1].Reply(answer, nil))
	_, _, _ = eve[1].Next(nil, bound)
	w.hub.Remove(eve[1])
	w.connect(t, "eve", nil, 0) // with two connections, each has a share of half of the bound
	require.True(t, eve[0].Reply(answer, nil), "frames of a removed connection do not count")
}

// A message and many signals fill the bytes that may wait for a user. Another message arrives. The signals must be
// dropped, and the connection must stay open.
func TestAccount_SignalsMakeRoomForAMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{UserBytes: 6000}})
	w.deliver(w.began(`["alice","bob"]`))
	bob := w.connect(t, "bob", []string{"conversation:g"}, 1)
	w.deliver(w.sent("first"))
	for n := range 100 {
		w.shard.Signal("conversation:g", "", fmt.Sprint(n), typing(fmt.Sprint(n)))
	}
	w.shard.Deliver(w.long(0, 3000))
	require.False(t, bob.Ended())
	require.Equal(t, []string{"first", strings.Repeat("x", 3000)}, seen(t, bob))
}

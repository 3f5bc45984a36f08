package rooms_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// greeted adds a connection that will get the reply to connect.
func (w *world) greeted(t *testing.T, user string) *hub.Conn {
	t.Helper()
	c, err := w.hub.Add(user, frame.JSON)
	require.NoError(t, err)
	c.Greet(greeting)
	return c
}

// greeting returns a reply to connect that contains only the fields of the hub's Greeting.
func greeting(g hub.Greeting) frame.Frame {
	return frame.Answer("connect", &gatewayv1.Connected{ResumeToken: g.ResumeToken, NotRecovered: g.NotRecovered})
}

// readGreeting reports whether a frame is the reply to connect, and returns the rooms that are not recovered.
func readGreeting(f map[string]any) (rooms string, greeted bool) {
	if f["reply_to"] != "connect" {
		return "", false
	}
	return fmt.Sprint(f["data"].(map[string]any)["not_recovered"]), true
}

// back connects a user that resumes from the given position of chat's log, and from the beginning of the other logs.
func (w *world) back(t *testing.T, user string, after catalog.Position) *hub.Conn {
	t.Helper()
	c := w.greeted(t, user)
	had := hub.Progress{}
	for _, owner := range w.catalog.Logs() {
		had[owner] = hub.Point{}
	}
	had["chat"] = hub.Point{Position: after}
	w.rooms.Resume(c, had, nil, nil)
	return c
}

// received takes frames up to the reply to connect. It returns the events before the reply, and the rooms that are not
// recovered.
func received(t *testing.T, c *hub.Conn) (all []string, notRecovered string) {
	t.Helper()
	for {
		f := await(t, c)
		if rooms, greeted := readGreeting(f); greeted {
			return all, rooms
		}
		body, _ := f["data"].(map[string]any)["body"].(string)
		all = append(all, f["event"].(string)[len("chat."):]+" "+body)
	}
}

// resumed waits until the gateway has counted one connection that resumed chat's log with missed events of the given
// source. The gateway counts a connection after it has queued the connection's missed events.
func (w *world) resumed(t *testing.T, from string) {
	t.Helper()
	require.Eventually(t, func() bool {
		return testutil.ToFloat64(w.metrics.Resumed.WithLabelValues("chat", from)) == 1
	}, 5*time.Second, time.Millisecond)
}

func (w *world) chatted(t *testing.T) {
	t.Helper()
	chat := w.owners["chat"]
	chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
	w.sent("2")
	chat.Append("bob", "chat.member_left", `{"conversation_id":"g","user_id":"bob"}`)
	w.sent("4")
	chat.Append("alice", "chat.member_added", `{"conversation_id":"g","user_id":"bob"}`)
	w.sent("6")
}

func (w *world) sent(body string) {
	w.owners["chat"].Append("alice", "chat.message_sent",
		fmt.Sprintf(`{"conversation_id":"g","message_id":%q,"body":%q}`, body, body))
}

var sixthAndBefore = []string{"message_sent 2", "member_left ", "member_added ", "message_sent 6"}

func TestResume_FillsTheGapFromTheLogIfTheBufferIsEmpty(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.chatted(t)
	w.hub.Shard("chat").Begin(6) // the gateway has started after these events
	w.hub.Shard("chat").SetComplete(6)
	close(w.known)
	c := w.back(t, "bob", 1)
	all, notRecovered := received(t, c)
	require.Equal(t, sixthAndBefore, all)
	require.Equal(t, "[]", notRecovered)
	w.resumed(t, "log")

	all, _ = received(t, w.back(t, "bob", 6))
	require.Empty(t, all)
	all, _ = received(t, w.back(t, "eve", 0))
	require.Empty(t, all, "a resume token does not authorize")
	_, notRecovered = received(t, w.back(t, "bob", 100))
	require.Equal(t, "[conversation:g user:bob]", notRecovered, "the log has lost events that the client has")
}

func TestResume_OfAnotherIncarnationRecoversNothing(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.owners["chat"].Restore("two")
	w.chatted(t)
	close(w.known)
	for incarnation, want := range map[string]string{"one": "[conversation:g user:bob]", "two": "[]", "": "[]"} {
		c := w.greeted(t, "bob")
		w.rooms.Resume(c, hub.Progress{"chat": {Position: 1, Incarnation: hub.IncarnationOf(incarnation)}, "feed": {},
			"notification": {}}, nil, nil)
		all, notRecovered := received(t, c)
		require.Equal(t, want, notRecovered, incarnation)
		require.Equal(t, incarnation == "one", len(all) == 0)
	}
}

func TestResume_FillsTheGapFromTheRecentEvents(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.chatted(t)
	for _, e := range w.owners["chat"].Log()[:5] {
		w.deliver(e) // the gateway has not read the sixth event yet
	}
	w.hub.Shard("chat").SetComplete(4)
	close(w.known)
	all, _ := received(t, w.back(t, "bob", 1))
	require.Equal(t, sixthAndBefore, all)
	w.resumed(t, "recent")
}

func TestResume_OfALogMissingInTheTokenRecoversNothing(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.chatted(t)
	close(w.known)
	c := w.greeted(t, "bob")
	w.rooms.Resume(c, hub.Progress{"feed": {}, "notification": {}}, nil, nil)
	all, notRecovered := received(t, c)
	require.Empty(t, all)
	require.Equal(t, "[conversation:g user:bob]", notRecovered)
}

func TestResume_OnlyARoomOverTheBoundIsNotRecovered(t *testing.T) {
	t.Parallel()
	w := begin(t, 0, hub.Bounds{Events: 20})
	w.chatted(t)
	for n := range 20 {
		w.sent(fmt.Sprint(n))
	}
	w.owners["chat"].Append("alice", "chat.conversation_started", `{"conversation_id":"h","user_ids":["bob"]}`)
	w.hub.Shard("chat").Begin(3)
	close(w.known)
	all, notRecovered := received(t, w.back(t, "bob", 1))
	require.Equal(t, []string{"conversation_started "}, all)
	require.Equal(t, "[conversation:g]", notRecovered)
	for _, e := range w.owners["chat"].Log() {
		w.deliver(e)
	}
	w.hub.Shard("chat").SetComplete(27)
	all, notRecovered = received(t, w.back(t, "bob", 5))
	require.Equal(t, []string{"conversation_started "}, all)
	require.Equal(t, "[conversation:g]", notRecovered, "also if the events are in the buffer")
	all, notRecovered = received(t, w.back(t, "bob", 6))
	require.Len(t, all, 21)
	require.Equal(t, "[]", notRecovered)
}

func TestResume_AsksWithTheGatewaysBounds(t *testing.T) {
	t.Parallel()
	w := begin(t, 0, hub.Bounds{Events: 20, Bytes: 3000})
	w.chatted(t)
	close(w.known)
	received(t, w.back(t, "bob", 1))
	require.Equal(t, "20 3000", w.owners["chat"].Bounds())
}

func TestResume_AStormIsAFewCalls(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.chatted(t)
	w.hub.Shard("chat").Begin(6)
	var all []*hub.Conn
	for n := range 600 {
		user, known := map[int]string{0: "bob", 300: "alice"}[n]
		if !known {
			user = fmt.Sprint("u", n)
		}
		all = append(all, w.back(t, user, 1))
	}
	close(w.known)
	for n, c := range all {
		events, _ := received(t, c)
		require.Len(t, events, map[int]int{0: 4, 300: 5}[n])
	}
	require.LessOrEqual(t, w.owners["chat"].Resumed(), 4)
	require.Zero(t, w.owners["chat"].Asked())
}

func TestResume_WaitsForAnUnavailableOwner(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.chatted(t)
	close(w.known)
	w.owners["chat"].SetAway(true)
	c := w.back(t, "bob", 1)
	require.Eventually(t, func() bool { return w.owners["chat"].Refused() > 1 }, 5*time.Second, time.Millisecond)
	w.owners["chat"].SetAway(false)
	all, _ := received(t, c)
	require.Equal(t, sixthAndBefore, all)
}

func TestResume_AFailedAnswerDoesNotDelayOthers(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	feed := w.owners["feed"]
	feed.Allow("bob", "author:alice", true)
	feed.FailFor("eve")
	eve := w.back(t, "eve", 0)
	var others []*hub.Conn
	for n := range 15 {
		others = append(others, w.back(t, fmt.Sprint("u", n), 0))
	}
	close(w.known)
	for _, c := range others {
		received(t, c)
	}
	bob := w.back(t, "bob", 0)
	received(t, bob)
	require.True(t, <-w.look(bob, "author:alice"))

	// Eve's missed events cannot be read. None of her rooms is recovered, but she must be connected.
	_, notRecovered := received(t, eve)
	require.Equal(t, "[user:eve]", notRecovered)

	// From now on the gateway does not ask the owner for eve's missed events. Many connections must therefore need only
	// a few calls again.
	asked := feed.Resumed()
	others = nil
	for n := range 100 {
		others = append(others, w.back(t, fmt.Sprint("v", n), 0))
	}
	eve = w.back(t, "eve", 0)
	for _, c := range append(others, eve) {
		received(t, c)
	}
	require.LessOrEqual(t, feed.Resumed(), asked+10)
}

// posted waits for the event of a post, and returns the body of the post.
func posted(t *testing.T, c *hub.Conn) any {
	t.Helper()
	f := await(t, c)
	require.Equal(t, "feed.post_created", f["event"], f)
	return f["data"].(map[string]any)["body"]
}

func (w *world) post(author, body string) envelope.Event {
	return w.owners["feed"].Append(author, "feed.post_created",
		fmt.Sprintf(`{"post_id":%q,"author_id":%q,"body":%q}`, body, author, body))
}

func TestResume_RecoversSubscribedRooms(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	feed := w.owners["feed"]
	feed.Allow("bob", "author:alice", true)
	feed.Allow("bob", "author:dave", false)
	for _, body := range []string{"seen", "missed", "missed too"} {
		w.post("alice", body)
	}
	w.post("carol", "of somebody else")
	w.post("dave", "not for bob")
	close(w.known)
	c := w.greeted(t, "bob")
	answers := make(chan string, 10)
	unknown := w.rooms.Resume(c, hub.Progress{"feed": {Position: 1}, "chat": {}, "notification": {}},
		[]string{"author:alice", "author:dave", "nothing:x"},
		func(room string, refused bool) { answers <- fmt.Sprint(room, " ", refused) })
	require.Equal(t, []string{"nothing:x"}, unknown)
	require.Equal(t, "missed", posted(t, c))
	require.Equal(t, "missed too", posted(t, c))
	_, rooms := received(t, c)
	require.Equal(t, "[]", rooms)
	require.ElementsMatch(t, []string{"author:alice false", "author:dave true"}, []string{<-answers, <-answers})
	require.Equal(t, 1, w.rooms.CountSubscriptions(c))

	for _, e := range feed.Log() { // the gateway reads the log only now
		w.deliver(e)
	}
	w.deliver(w.post("dave", "still not"))
	w.deliver(w.post("alice", "new"))
	require.Equal(t, "new", posted(t, c))
	w.rooms.Unsubscribe(c, "author:alice")
	w.deliver(w.post("alice", "newer"))
	require.Empty(t, fake.Take(c, 10))
}

func TestResume_OfALogMissingInTheTokenSubscribesAgain(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.owners["feed"].Allow("bob", "author:alice", true)
	w.post("alice", "missed")
	close(w.known)
	c := w.greeted(t, "bob")
	given := make(chan bool, 1)
	w.rooms.Resume(c, hub.Progress{"chat": {}, "notification": {}}, []string{"author:alice"},
		func(_ string, refused bool) { given <- !refused })
	_, rooms := received(t, c)
	require.Equal(t, "[author:alice user:bob]", rooms)
	require.True(t, <-given)
	w.deliver(w.post("alice", "new"))
	require.Equal(t, "new", posted(t, c))
}

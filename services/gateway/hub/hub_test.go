package hub_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// world is a hub and an owner. The test decides when each event of the owner is delivered to the hub.
type world struct {
	hub   *hub.Hub
	chat  *fake.Owner
	shard *hub.Shard
}

func newWorld(t testing.TB, o hub.Options) *world {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	o.Catalog = c
	h := hub.New(o)
	return &world{hub: h, chat: fake.NewOwner(c, "chat"), shard: h.Shard("chat")}
}

func (w *world) event(e envelope.Event) *hub.Event {
	declared, _ := w.chat.Catalog.Event(e.Type)
	return hub.NewEvent(e, declared)
}

// began appends the start of the conversation "g" to the log, and does not deliver it.
func (w *world) began(users string) envelope.Event {
	return w.chat.Append("alice", "chat.conversation_started",
		fmt.Sprintf(`{"conversation_id":"g","kind":"KIND_GROUP","user_ids":%s}`, users))
}

func (w *world) sent(body string) envelope.Event {
	return w.chat.Append("alice", "chat.message_sent",
		fmt.Sprintf(`{"conversation_id":"g","message_id":"m-%s","body":%q}`, body, body))
}

func (w *world) member(event, user string) envelope.Event {
	return w.chat.Append("alice", event, fmt.Sprintf(`{"conversation_id":"g","user_id":%q}`, user))
}

func (w *world) deliver(events ...envelope.Event) {
	for _, e := range events {
		w.shard.Deliver(w.event(e))
	}
}

// connect adds a connection of a user, and attaches it with the rooms that the owner has returned as of a position.
func (w *world) connect(t testing.TB, user string, rooms []string, position catalog.Position) *hub.Conn {
	t.Helper()
	c, err := w.hub.Add(user, frame.JSON)
	require.NoError(t, err)
	require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: rooms, Position: position}))
	return c
}

// seen takes the events that wait for a connection, and returns the body of each message, and the name of each other
// event, with its user_id if it has one. A redacted event is returned as "redacted".
func seen(t testing.TB, c *hub.Conn) []string {
	t.Helper()
	all := []string{}
	for _, frame := range fake.Take(c, 10_000) {
		var f struct {
			Event    string
			Redacted bool
			Data     struct {
				Body string
				User string `json:"user_id"`
			}
		}
		require.NoError(t, json.Unmarshal(frame, &f))
		switch {
		case f.Redacted:
			all = append(all, "redacted"+f.Data.Body)
		case f.Data.Body != "":
			all = append(all, f.Data.Body)
		case f.Data.User != "":
			all = append(all, strings.TrimPrefix(f.Event, "chat.")+" "+f.Data.User)
		case f.Event != "":
			all = append(all, strings.TrimPrefix(f.Event, "chat."))
		}
	}
	return all
}

func TestDeliver_GoesToMembersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	bob := w.connect(t, "bob", nil, 0)
	bobToo := w.connect(t, "bob", nil, 0)
	eve := w.connect(t, "eve", nil, 0)

	w.deliver(w.began(`["alice","bob"]`), w.sent("one"))

	require.Equal(t, []string{"conversation_started", "one"}, seen(t, bob))
	require.Equal(t, []string{"conversation_started", "one"}, seen(t, bobToo))
	require.Empty(t, seen(t, eve))
}

func TestDeliver_OpensAndClosesInTheOrderOfTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	bob := w.connect(t, "bob", nil, 0)

	w.deliver(w.began(`["alice"]`), w.sent("before"), w.member("chat.member_added", "bob"), w.sent("within"),
		w.member("chat.member_left", "bob"), w.sent("after"), w.member("chat.member_added", "bob"), w.sent("again"))

	require.Equal(t, []string{"member_added bob", "within", "member_left bob", "member_added bob", "again"}, seen(t, bob))
}

// A connection is in several rooms of one event. It must get the event once. It must also get a state event only once,
// even if the state event is delivered repeatedly.
func TestDeliver_GoesOnceToAConnectionInSeveralRooms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	rooms := []string{"conversation:g", "conversation:h", "user:bob"}
	w.deliver(w.began(`["bob"]`))
	bob := w.connect(t, "bob", rooms[:2], 1)
	e := w.sent("one")
	e.Rooms = rooms
	require.Equal(t, 1, w.shard.Deliver(w.event(e)))
	e = w.member("chat.member_left", "bob") // closes conversation:g for bob
	e.Rooms = rooms
	require.Equal(t, 1, w.shard.Deliver(w.event(e)))
	require.Equal(t, []string{"one", "member_left bob"}, seen(t, bob))

	shard := w.hub.Shard("presence")
	for _, room := range []string{"presence:u1", "presence:u2"} {
		require.True(t, shard.Subscribe(bob, hub.Authorization{Room: room, Until: time.Now().Add(time.Minute)}))
	}
	for _, want := range []int{1, 0, 0} {
		state := w.presence("u1", "came_online", 1)
		state.Rooms = []string{"presence:u1", "presence:u2"}
		require.Equal(t, want, shard.Deliver(state))
	}
	require.Equal(t, []string{"presence.came_online u1"}, seen(t, bob))
}

func TestAttach_ALaggingGatewayDeliversNothingFromBetweenMemberships(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	held := []envelope.Event{
		w.began(`["alice"]`), w.member("chat.member_added", "bob"), w.sent("first time"),
		w.member("chat.member_left", "bob"), w.sent("between"), w.member("chat.member_added", "bob"), w.sent("known"),
	}
	// The owner answers as of the end of its log, but the gateway has not read any of these events yet.
	bob := w.connect(t, "bob", []string{"conversation:g"}, 7)
	eve := w.connect(t, "eve", nil, 7)

	w.deliver(held...)
	w.deliver(w.sent("new"), w.member("chat.member_left", "bob"), w.sent("gone"))

	require.Equal(t, []string{"new", "member_left bob"}, seen(t, bob))
	require.Empty(t, seen(t, eve))
}

func TestAttach_AddsBufferedEventsToAnOlderAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	w.deliver(w.began(`["alice","bob"]`), w.sent("known"))
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	// The gateway reads these events after the owner has answered as of position 2, but before the answer arrives.
	w.deliver(w.sent("under way"), w.member("chat.member_left", "bob"), w.sent("gone"),
		w.member("chat.member_added", "bob"), w.sent("back"))

	require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 2}))

	require.Equal(t, []string{"under way", "member_left bob", "member_added bob", "back"}, seen(t, c))
	w.deliver(w.sent("live"))
	require.Equal(t, []string{"live"}, seen(t, c))
}

func TestAttach_SendsDeletedMessagesRedacted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	w.deliver(w.began(`["alice","bob"]`))
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	w.deliver(w.sent("secret"), w.sent("other"),
		w.chat.Append("alice", "chat.message_deleted", `{"conversation_id":"g","message_id":"m-secret"}`))

	require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 1}))

	require.Equal(t, []string{"redacted", "other", "message_deleted"}, seen(t, c))
}

func TestAttach_AsksAgainIfTheBufferDoesNotReachBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Buffer: 5 * 3000}) // each owner's share is too small for the ten events below
	w.deliver(w.began(`["alice","bob"]`))
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	for n := range 10 {
		w.deliver(w.sent(fmt.Sprint(n)))
	}
	require.False(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 1}))
	require.Empty(t, seen(t, c))
	require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 10}))
	require.Equal(t, []string{"9"}, seen(t, c))
}

// greeting returns a reply to connect that contains only the fields of the hub's Greeting.
func greeting(g hub.Greeting) frame.Frame {
	return frame.Answer("connect", &gatewayv1.Connected{ResumeToken: g.ResumeToken, NotRecovered: g.NotRecovered})
}

func TestGreeting_FollowsTheMissedEventsOfAllLogs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	c.Greet(greeting)
	c.DelayGreeting(1)
	w.deliver(w.began(`["bob"]`))
	logs := w.chat.Catalog.Logs()
	for _, owner := range logs {
		require.True(t, w.hub.Shard(owner).Attach(c, hub.Attachment{}))
	}
	require.Len(t, fake.Take(c, 10), 1, "the greeting waits for Release")
	c.Release()
	frames := fake.Take(c, 10)
	require.Len(t, frames, 1)
	require.Contains(t, string(frames[0]), `{"type":"reply","reply_to":"connect","ok":true,"data":{`)
}

func TestSlowConnection_IsClosedWithAReasonAndOthersGetEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 10}})
	slow := w.connect(t, "bob", nil, 0)
	fast := w.connect(t, "alice", nil, 0)
	w.deliver(w.began(`["alice","bob"]`))
	require.Len(t, seen(t, fast), 1)
	for n := range 20 {
		w.deliver(w.sent(fmt.Sprint(n)))
		require.Equal(t, []string{fmt.Sprint(n)}, seen(t, fast))
	}
	reason, ended := slow.Reason()
	require.True(t, ended)
	require.Equal(t, hub.Slow, reason)
	require.True(t, reason.Reconnect)
}

func TestQueue_IsBoundedInBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Bytes: 5000}})
	c := w.connect(t, "bob", nil, 0)
	w.deliver(w.began(`["bob"]`))
	for range 4 {
		w.deliver(w.sent(strings.Repeat("x", 2000)))
	}
	reason, _ := c.Reason()
	require.Equal(t, hub.Slow, reason)
}

func (w *world) presence(user, event string, version catalog.Version) *hub.Event {
	e := w.chat.Event(user, "presence."+event, fmt.Sprintf(`{"user_id":%q}`, user))
	e.Source, e.Version = "presence", version
	return w.event(e)
}

func TestEphemeral_IsMergedToTheNewestAndDroppedFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 4}})
	c := w.connect(t, "bob", nil, 0)
	shard := w.hub.Shard("presence")
	for _, room := range []string{"presence:u1", "presence:u2", "presence:u3"} {
		require.True(t, shard.Subscribe(c, hub.Authorization{Room: room, Until: time.Now().Add(time.Minute)}))
	}
	for n := range catalog.Version(50) {
		shard.Deliver(w.presence("u1", "came_online", 2*n+1))
		shard.Deliver(w.presence("u1", "went_offline", 2*n+2))
	}
	shard.Deliver(w.presence("u2", "came_online", 1))
	shard.Deliver(w.presence("u3", "came_online", 1))
	w.deliver(w.began(`["bob"]`), w.sent("1"), w.sent("2"), w.sent("3"))

	_, ended := c.Reason()
	require.False(t, ended, "state is dropped first")
	require.Equal(t, []string{"conversation_started", "1", "2", "3"}, seen(t, c))

	shard.Deliver(w.presence("u1", "came_online", 200))
	shard.Deliver(w.presence("u1", "went_offline", 201))
	shard.Deliver(w.presence("u1", "came_online", 200))
	require.Equal(t, []string{"presence.went_offline u1"}, seen(t, c), "only the newest event, once")
}

func TestSubscribe_AStateReadWhileTheOwnerAnsweredIsNotMissed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	shard := w.hub.Shard("presence")
	c := w.connect(t, "bob", nil, 0)
	shard.Deliver(w.presence("alice", "came_online", 3))
	asked, attached := shard.Now(c)
	require.True(t, attached)
	shard.Deliver(w.presence("alice", "went_offline", 6)) // read before the answer arrives, and newer than the answer

	require.True(t, shard.Subscribe(c, hub.Authorization{Room: "presence:alice", Asked: asked, Until: time.Now().Add(time.Minute),
		Snapshot: []*hub.Event{w.presence("alice", "came_online", 5)}}))
	shard.Deliver(w.presence("alice", "went_offline", 6))
	shard.Deliver(w.presence("alice", "came_online", 4))

	require.Equal(t, []string{"presence.went_offline alice"}, seen(t, c))
}

func TestSubscribe_EventsReadWhileTheOwnerAnsweredAreDelivered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	shard := w.hub.Shard("presence")
	c := w.connect(t, "bob", nil, 0)
	asked, _ := shard.Now(c)
	shard.Deliver(w.presence("alice", "came_online", 1))
	shard.Deliver(w.presence("carol", "came_online", 1))
	e := w.presence("carol", "went_offline", 2)
	e.Rooms = []string{"presence:alice"} // this room is not the room of the event's stream
	shard.Deliver(e)

	require.True(t, shard.Subscribe(c, hub.Authorization{Room: "presence:alice", Asked: asked, Until: time.Now().Add(time.Minute)}))

	require.Equal(t, []string{"presence.came_online alice", "presence.went_offline carol"}, seen(t, c))
}

func TestSubscribe_EndsUnlessRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	shard := w.hub.Shard("presence")
	c := w.connect(t, "bob", nil, 0)
	now := time.Now()
	require.True(t, shard.Subscribe(c, hub.Authorization{Room: "presence:alice", Until: now.Add(time.Second)}))
	require.True(t, shard.Subscribe(c, hub.Authorization{Room: "presence:carol", Until: now.Add(time.Second)}))
	require.Len(t, shard.Subscriptions(), 2)
	shard.Renew(hub.Subscription{Conn: c, Room: "presence:alice"}, now.Add(time.Minute))

	require.Equal(t, []hub.Subscription{{Conn: c, Room: "presence:carol"}}, shard.Expire(now.Add(2*time.Second)))

	shard.Deliver(w.presence("carol", "came_online", 1))
	shard.Deliver(w.presence("alice", "came_online", 1))
	require.Equal(t, []string{"presence.came_online alice"}, seen(t, c))
	shard.Unsubscribe(c, "presence:alice")
	shard.Deliver(w.presence("alice", "came_online", 2))
	require.Empty(t, seen(t, c))
}

func TestHub_BoundsTheConnectionsOfOneUserAndEndsAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{PerUser: 2})
	first := w.connect(t, "bob", nil, 0)
	w.connect(t, "bob", nil, 0)
	_, err := w.hub.Add("bob", frame.JSON)
	require.ErrorIs(t, err, hub.ErrTooMany)
	w.hub.Remove(first)
	w.connect(t, "bob", nil, 0)

	last := w.connect(t, "carol", nil, 0)
	w.hub.Close(hub.Shutdown)
	reason, ended := last.Reason()
	require.True(t, ended)
	require.Equal(t, hub.Shutdown, reason)
	_, err = w.hub.Add("dan", frame.JSON)
	require.ErrorIs(t, err, hub.ErrClosed)
}

func TestEvent_IsShownWithoutDataWhenItsTypeIsNotKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	e := w.began(`["bob"]`)
	e.Type = "chat.from_the_future"
	text, err := hub.NewEvent(e, nil).Frame(0)
	require.NoError(t, err)
	require.Contains(t, string(text), `{"type":"event","event":"chat.from_the_future"`)
}

// Texts are encoded in the same way in events, signals and replies: characters that are special in HTML are not
// escaped.
func TestEvent_IsNotEscapedForHTML(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	e := w.sent("a < b && c > d")
	e.Actor = "<é>&"
	text, err := w.event(e).Frame(0)
	require.NoError(t, err)
	require.Contains(t, string(text), `"body":"a < b && c > d"`)
	require.Contains(t, string(text), `"actor":"<é>&"`)
}

// BenchmarkDeliver measures the delivery of one event to a room with the given number of connections. Their queues are
// emptied now and then.
func BenchmarkDeliver(b *testing.B) {
	for _, members := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			w := newWorld(b, hub.Options{PerUser: members})
			w.deliver(w.began(`["alice"]`))
			connections := make([]*hub.Conn, members)
			for n := range connections {
				connections[n] = w.connect(b, "bob", []string{"conversation:g"}, 1)
			}
			e := w.sent("hello, everybody")
			b.ReportAllocs()
			b.ResetTimer()
			for n := range b.N {
				e.Position++
				w.shard.Deliver(w.event(e))
				if n%500 == 499 {
					b.StopTimer()
					for _, c := range connections {
						fake.Take(c, 1000)
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*members), "ns/delivery")
		})
	}
}

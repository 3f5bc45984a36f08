package rooms_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

type world struct {
	catalog *catalog.Catalog
	hub     *hub.Hub
	rooms   *rooms.Rooms
	owners  map[string]*fake.Owner
	known   chan struct{}
	metrics *rooms.Metrics
	counted *prometheus.Registry
}

func begin(t *testing.T, lease time.Duration, missed ...hub.Bounds) *world {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	w := &world{catalog: c, owners: map[string]*fake.Owner{}, known: make(chan struct{}),
		metrics: rooms.NewMetrics(nil), counted: prometheus.NewRegistry()}
	w.hub = hub.New(hub.Options{Catalog: c, PerUser: 1000})
	clients := map[string]meshv1connect.OwnerServiceClient{}
	for _, name := range c.Owners() {
		w.owners[name] = fake.NewOwner(c, name)
		server := httptest.NewServer(w.owners[name].Handler())
		t.Cleanup(server.Close)
		clients[name] = meshv1connect.NewOwnerServiceClient(server.Client(), server.URL)
	}
	w.rooms = rooms.New(rooms.Options{Catalog: c, Hub: w.hub, Owners: clients, Lease: lease, Metrics: w.metrics,
		Guard: guard.New(slog.New(slog.DiscardHandler), w.counted), Missed: append(missed, hub.Bounds{})[0],
		Known: func(string) <-chan struct{} { return w.known }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.rooms.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *world) connect(t *testing.T, user string) *hub.Conn {
	t.Helper()
	c, err := w.hub.Add(user, frame.JSON)
	require.NoError(t, err)
	c.Greet(greeting)
	w.rooms.Attach(c)
	return c
}

// await waits for the next frame of a connection, and skips the frames "not_recovered".
func await(t *testing.T, c *hub.Conn) (f map[string]any) {
	t.Helper()
	meshtest.Eventually(t, "a frame", func() bool {
		frames := fake.Take(c, 1)
		if len(frames) == 0 || strings.HasPrefix(string(frames[0]), `{"type":"not_recovered"`) {
			return false
		}
		require.NoError(t, json.Unmarshal(frames[0], &f))
		return true
	})
	return f
}

func (w *world) deliver(e envelope.Event) {
	declared, _ := w.catalog.Event(e.Type)
	w.hub.Shard(e.Source).Deliver(hub.NewEvent(e, declared))
}

func TestAttach_OpensTheRoomsOfTheUserOnceTheFanOutIsKnown(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	chat := w.owners["chat"]
	began := chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
	bob, eve := w.connect(t, "bob"), w.connect(t, "eve")
	require.Zero(t, chat.Asked(), "the owner must not be asked before the fan-out knows its positions")
	close(w.known)
	require.Equal(t, "connect", await(t, bob)["reply_to"])
	require.Equal(t, "connect", await(t, eve)["reply_to"])

	w.deliver(began)
	w.deliver(chat.Append("alice", "chat.message_sent", `{"conversation_id":"g","message_id":"m","body":"hi"}`))
	require.Equal(t, "chat.message_sent", await(t, bob)["event"])
	require.Empty(t, fake.Take(eve, 10))
}

func TestAttach_ManyUsersInOneCall(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	var all []*hub.Conn
	for n := range 200 {
		all = append(all, w.connect(t, fmt.Sprint("u", n)))
	}
	close(w.known)
	for _, c := range all {
		await(t, c)
	}
	require.LessOrEqual(t, w.owners["chat"].Asked(), 3)
}

func TestAttach_WaitsForAnUnavailableOwner(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	close(w.known)
	w.owners["feed"].SetAway(true)
	c := w.connect(t, "bob")
	require.Eventually(t, func() bool { return w.owners["feed"].Refused() > 1 }, 5*time.Second, time.Millisecond)
	require.Empty(t, fake.Take(c, 1))
	w.owners["feed"].SetAway(false)
	require.Equal(t, "connect", await(t, c)["reply_to"])
}

func (w *world) look(c *hub.Conn, room string) chan bool {
	allowed := make(chan bool, 1)
	w.rooms.Subscribe(c, room, func(refused bool) { allowed <- !refused })
	return allowed
}

// A client unsubscribes from a room before the owner has answered its subscription to the room. The client must then
// not be subscribed.
func TestUnsubscribe_BeforeTheAnswerEndsTheSubscription(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	close(w.known)
	presence := w.owners["presence"]
	presence.Allow("bob", "presence:alice", true)
	presence.Allow("bob", "presence:carol", true)
	c := w.connect(t, "bob")
	await(t, c)
	presence.SetAway(true)
	alice, carol := w.look(c, "presence:alice"), w.look(c, "presence:carol")
	require.Eventually(t, func() bool { return presence.Refused() > 0 }, 5*time.Second, time.Millisecond)
	w.rooms.Unsubscribe(c, "presence:alice")
	presence.SetAway(false)
	<-alice
	require.True(t, <-carol)
	require.Equal(t, 1, w.rooms.CountSubscriptions(c))
	require.True(t, <-w.look(c, "presence:alice"), "the client may subscribe again")
	require.Equal(t, 2, w.rooms.CountSubscriptions(c))
}

func TestSubscribe_DeliversTheSnapshotAndLaterEvents(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	close(w.known)
	presence := w.owners["presence"]
	online := presence.Event("alice", "presence.came_online", `{"user_id":"alice"}`)
	online.Version = 5
	presence.Allow("bob", "presence:alice", true, online)
	c := w.connect(t, "bob")
	await(t, c)

	require.True(t, <-w.look(c, "presence:alice"))
	require.Equal(t, "presence.came_online", await(t, c)["event"])
	require.False(t, <-w.look(c, "presence:carol"))
	require.False(t, w.rooms.Subscribe(c, "nothing:carol", nil))
	require.False(t, w.rooms.Subscribe(c, "presence:not an id", nil))
	require.Equal(t, 1, w.rooms.CountSubscriptions(c))

	offline := presence.Event("alice", "presence.went_offline", `{"user_id":"alice"}`)
	offline.Version = 6
	w.deliver(offline)
	require.Equal(t, "presence.went_offline", await(t, c)["event"])
}

func TestSubscribe_ToALoggedRoomStartsAtAsOf(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	feed := w.owners["feed"]
	feed.Allow("bob", "author:alice", true)
	old := feed.Append("alice", "feed.post_created", `{"post_id":"p1","author_id":"alice","body":"old"}`)
	c := w.connect(t, "bob")
	looking := w.look(c, "author:alice") // the subscription waits until the user's rooms are known
	close(w.known)
	require.True(t, <-looking)
	await(t, c)
	w.deliver(old)
	w.deliver(feed.Append("alice", "feed.post_created", `{"post_id":"p2","author_id":"alice","body":"new"}`))
	require.Equal(t, "p2", await(t, c)["data"].(map[string]any)["post_id"])
}

func TestSubscribe_IsRenewedUntilRefusedOrTheLeaseEnds(t *testing.T) {
	t.Parallel()
	w := begin(t, 100*time.Millisecond)
	close(w.known)
	presence := w.owners["presence"]
	presence.Allow("bob", "presence:alice", true)
	presence.Allow("bob", "presence:carol", true)
	c := w.connect(t, "bob")
	await(t, c)
	require.True(t, <-w.look(c, "presence:alice"))
	require.True(t, <-w.look(c, "presence:carol"))
	asked := presence.Asked()
	require.Eventually(t, func() bool { return presence.Asked() > asked+3 }, 5*time.Second, time.Millisecond)
	require.Equal(t, 2, w.rooms.CountSubscriptions(c))

	presence.Allow("bob", "presence:alice", false)
	ended := await(t, c)
	require.Equal(t, "presence:alice", ended["room"])
	require.Equal(t, "not_a_member", ended["error"].(map[string]any)["code"])
	presence.SetAway(true)
	ended = await(t, c)
	require.Equal(t, "presence:carol", ended["room"])
	require.Equal(t, "unavailable", ended["error"].(map[string]any)["code"])
}

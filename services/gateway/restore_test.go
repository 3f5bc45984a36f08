package gateway

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/client"
)

// continueSession connects with a session id only, without rooms and without a resume token.
func (m *mesh) continueSession(address, user, session string) *inbox {
	m.t.Helper()
	return connect(m.t, address, user, func(o *client.Options) { o.SessionID = session })
}

// shown makes the presence service allow a user to subscribe to the presence of others, and returns the rooms, such as
// presence:alice.
func (m *mesh) shown(user string, others ...string) (rooms []string) {
	for n, other := range others {
		e := m.owners["presence"].Event(other, "presence.came_online", fmt.Sprintf(`{"user_id":%q}`, other))
		e.Version = catalog.Version(n + 1)
		m.owners["presence"].Allow(user, "presence:"+other, true, e)
		rooms = append(rooms, "presence:"+other)
	}
	return rooms
}

// m.keeps waits until exactly the given rooms of a session are stored.
func (m *mesh) keeps(user, session string, rooms ...string) {
	m.t.Helper()
	require.EventuallyWithT(m.t, func(c *assert.CollectT) {
		require.ElementsMatch(c, rooms, m.owners["presence"].Session(user, session))
	}, 10*time.Second, time.Millisecond)
}

// A client subscribes to rooms and loses its connection. A connection that continues the session at another gateway
// must be subscribed to the same rooms, although the client does not name them.
func TestConnect_RestoresTheRoomsOfItsSession(t *testing.T) {
	t.Parallel()
	m := begin(t)
	one, _ := m.gateway(settings{})
	two, _ := m.gateway(settings{})
	m.shown("bob", "alice", "carol", "dave")
	first := connect(t, one, "bob", func(o *client.Options) { o.Rooms = []string{"presence:alice", "presence:eve"} })
	session := first.Connected().SessionID
	m.keeps("bob", session, "presence:alice")
	_, err := first.Subscribe(t.Context(), "presence:carol", "presence:dave")
	require.NoError(t, err)
	_, err = first.Request(t.Context(), map[string]any{"type": "unsubscribe", "data": map[string]any{"rooms": []string{"presence:dave"}}})
	require.NoError(t, err)
	m.keeps("bob", session, "presence:alice", "presence:carol")
	first.Abort()

	second := m.continueSession(two, "bob", session)
	require.Equal(t, session, second.Connected().SessionID)
	require.Equal(t, []string{"presence:alice", "presence:carol"}, second.Connected().Rooms)
	require.Empty(t, second.Connected().Refused)
	require.ElementsMatch(t, []string{"presence.came_online alice", "presence.came_online carol"}, second.seen())
	offline := m.owners["presence"].Event("carol", "presence.went_offline", `{"user_id":"carol"}`)
	offline.Version = 99
	m.publish(offline)
	require.Eventually(t, func() bool { return len(second.seen()) == 3 }, 10*time.Second, time.Millisecond)
	require.Equal(t, "presence.went_offline carol", second.seen()[2])

	// The user may no longer subscribe to a room of the session. The reply to connect must name this room as refused,
	// and the room must no longer be stored.
	m.owners["presence"].Allow("bob", "presence:alice", false)
	second.Abort()
	third := m.continueSession(one, "bob", session)
	require.Equal(t, []string{"presence:carol"}, third.Connected().Rooms)
	require.Equal(t, "presence:alice", third.Connected().Refused[0].Room)
	m.keeps("bob", session, "presence:carol")

	// A client that names rooms must be subscribed to these rooms only.
	fourth := connect(t, two, "bob", func(o *client.Options) { o.SessionID, o.Rooms = session, []string{"presence:dave"} })
	require.Equal(t, []string{"presence:dave"}, fourth.Connected().Rooms)
	m.keeps("bob", session, "presence:dave")
	_, err = fourth.Request(t.Context(), map[string]any{"type": "unsubscribe", "data": map[string]any{"rooms": []string{"presence:dave"}}})
	require.NoError(t, err)
	m.keeps("bob", session)
	require.Empty(t, m.continueSession(one, "bob", session).Connected().Rooms)

	m.keeps("eve", session)
	require.Empty(t, m.continueSession(one, "eve", session).Connected().Rooms, "the session of another user")
	asked := m.owners["presence"].Restored()
	connect(t, one, "bob")
	require.Equal(t, asked, m.owners["presence"].Restored(), "a new session has no rooms to ask for")
}

// A second connection, at another gateway, continues a session and restores its rooms. After the second gateway has
// reported this connection, the client of the first connection unsubscribes from a room. The rooms of the first
// connection must then be stored: this connection is older, but its client has chosen the rooms. The rooms of the
// second connection were only restored.
func TestConnect_RestoredRoomsDoNotReplaceNewerOnes(t *testing.T) {
	t.Parallel()
	m := begin(t)
	one, _ := m.gateway(settings{})
	two, _ := m.gateway(settings{})
	m.shown("bob", "alice", "carol")
	first := connect(t, one, "bob", func(o *client.Options) { o.Rooms = []string{"presence:alice", "presence:carol"} })
	session := first.Connected().SessionID
	m.keeps("bob", session, "presence:alice", "presence:carol")
	second := m.continueSession(two, "bob", session)
	require.Equal(t, []string{"presence:alice", "presence:carol"}, second.Connected().Rooms)

	require.Eventually(t, func() bool { // the second gateway has reported its connection, and reported again
		reporter, reports := "", 0
		for _, r := range m.owners["presence"].Reports() {
			if reporter == r.Gateway {
				reports++
			}
			for _, c := range r.Changes {
				if c.Session == session && r.Gateway != m.owners["presence"].Reports()[0].Gateway && reporter == "" {
					reporter = r.Gateway
				}
			}
		}
		return reports > 0
	}, 10*time.Second, time.Millisecond)
	_, err := first.Request(t.Context(), map[string]any{"type": "unsubscribe", "data": map[string]any{"rooms": []string{"presence:carol"}}})
	require.NoError(t, err)
	m.keeps("bob", session, "presence:alice")
}

// A client resumes and continues its session, without naming the rooms of the session. It must get the missed events of
// these rooms like all other missed events.
func TestConnect_ResumesTheRoomsOfItsSession(t *testing.T) {
	t.Parallel()
	m := begin(t)
	one, _ := m.gateway(often)
	two, _ := m.gateway(often)
	feed := m.owners["feed"]
	feed.Allow("bob", "author:carol", true)
	first := connect(t, one, "bob", func(o *client.Options) { o.Rooms = []string{"author:carol"} })
	session := first.Connected().SessionID
	m.keeps("bob", session, "author:carol")
	token := m.settled(first)
	first.Abort()
	m.publish(feed.Append("carol", "feed.post_created", `{"post_id":"7","author_id":"carol","body":"missed"}`))
	second := connect(t, two, "bob", func(o *client.Options) { o.SessionID, o.ResumeToken = session, token })
	require.True(t, second.Connected().Resumed)
	require.Equal(t, []string{"author:carol"}, second.Connected().Rooms)
	require.Equal(t, []string{"missed"}, second.seen(), "before the reply")
}

// The rooms of a session cannot be read, because the presence service is unavailable. The connection must begin without
// these rooms, and the reply to connect must not list them. The stored rooms must not be lost.
func TestConnect_BeginsWithoutTheRoomsOfItsSessionIfTheyAreUnknown(t *testing.T) {
	t.Parallel()
	m := begin(t)
	address, _ := m.gateway(settings{})
	m.shown("bob", "alice", "carol")
	first := connect(t, address, "bob", func(o *client.Options) { o.Rooms = []string{"presence:alice"} })
	session := first.Connected().SessionID
	m.keeps("bob", session, "presence:alice")
	first.Abort()
	m.owners["presence"].SetAway(true)
	second := m.continueSession(address, "bob", session)
	require.Equal(t, session, second.Connected().SessionID)
	require.Equal(t, []string{}, second.Connected().Rooms)
	m.owners["presence"].SetAway(false)
	before := len(m.owners["presence"].Reports())
	m.owners["presence"].AskAgain()
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(m.owners["presence"].Reports()[before:], func(r *meshv1.ReportRequest) bool { return r.All })
	}, 10*time.Second, time.Millisecond)
	m.keeps("bob", session, "presence:alice")
	_, err := second.Subscribe(t.Context(), "presence:carol")
	require.NoError(t, err)
	m.keeps("bob", session, "presence:carol")
}

// The gateway cannot renew a subscription, because the user may no longer subscribe. It must end the subscription, and
// the room must no longer be stored for the session.
func TestConnect_ARoomThatTheGatewayUnsubscribedIsNotRestored(t *testing.T) {
	t.Parallel()
	m := begin(t)
	ended := make(chan string, 1)
	address, _ := m.gateway(settings{lease: 50 * time.Millisecond})
	m.shown("bob", "alice", "carol")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	bob := connect(t, address, "bob", func(o *client.Options) {
		o.Rooms = []string{"presence:alice", "presence:carol"}
		o.OnUnsubscribed = func(room string, _ client.Error) { ended <- room }
	})
	session := bob.Connected().SessionID
	m.keeps("bob", session, "presence:alice", "presence:carol")
	m.owners["presence"].Allow("bob", "presence:alice", false)
	select {
	case room := <-ended:
		require.Equal(t, "presence:alice", room)
	case <-ctx.Done():
		t.Fatal("the subscription was not ended")
	}
	m.keeps("bob", session, "presence:carol")
}

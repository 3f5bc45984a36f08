package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/client"
)

// often contains settings with which a gateway sends resume tokens so frequently that a test need not wait for them.
var often = settings{cover: 20 * time.Millisecond}

// settled waits until the connection has a resume token that covers all events of chat's log so far, and returns the
// token.
func (m *mesh) settled(in *inbox) string {
	m.t.Helper()
	m.positions() // as relays do
	head := catalog.Position(len(m.owners["chat"].Log()))
	require.Eventually(m.t, func() bool {
		p, known := m.reader().ReadResumeToken(in.Connected().UserID, in.ResumeToken())
		return known && p["chat"].Position == head
	}, 10*time.Second, time.Millisecond)
	return in.ResumeToken()
}

// reader returns a hub that can read the resume tokens of the mesh's gateways.
func (m *mesh) reader() *hub.Hub {
	key, err := resumeTokenKey(m.config.ServiceSecret)
	require.NoError(m.t, err)
	return hub.New(hub.Options{Catalog: m.catalog, TokenKey: key})
}

// m.returns connects a user who was connected before, with a resume token and the given rooms, but without any other
// state of the earlier connection.
func (m *mesh) returns(address, user, token string, rooms ...string) *inbox {
	m.t.Helper()
	return connect(m.t, address, user, func(o *client.Options) { o.ResumeToken, o.Rooms = token, rooms })
}

func metric(t *testing.T, address, line string) bool {
	t.Helper()
	return strings.Contains(metrics(t, address), line+"\n")
}

func TestResume_FillsTheGapOnceAndInOrder(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	one, _ := m.gateway(often)
	two, _ := m.gateway(often)
	bob := connect(t, one, "bob")
	m.messageSent("seen")
	bob.expect(t, "seen")
	mark := m.settled(bob)
	bob.Abort()
	m.messageSent("missed")
	m.member("chat.member_left", "bob")
	m.messageSent("between")
	m.member("chat.member_added", "bob")
	m.messageSent("back")
	want := []string{"missed", "member_left bob", "member_added bob", "back", "live"}

	same, other := m.returns(one, "bob", mark), m.returns(two, "bob", mark)
	require.True(t, same.Connected().Resumed)
	require.Empty(t, same.Connected().NotRecovered)
	require.Equal(t, want[:4], same.seen(), "before the connection is ready")
	require.Equal(t, want[:4], other.seen())
	third, _ := m.gateway(often) // started after all these events
	restarted := m.returns(third, "bob", mark)
	m.messageSent("live")
	for _, in := range []*inbox{same, other, restarted} {
		in.expect(t, want...)
	}
	require.True(t, metric(t, one, `gateway_resumed_total{from="recent",owner="chat"} 1`))
	require.True(t, metric(t, third, `gateway_resumed_total{from="log",owner="chat"} 1`))

	eve := m.returns(two, "eve", mark)
	require.Empty(t, eve.seen(), "the token of another user grants nothing")
	require.False(t, eve.Connected().Resumed)
	require.Empty(t, m.returns(two, "bob", m.settled(restarted)).seen(), "nothing was missed")
}

func TestResume_ReturnsEventsThatALaggingGatewayHasNotReadYet(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	mark := m.settled(bob)
	bob.Abort()
	m.messageSent("read")
	m.hold()
	m.messageSent("held")
	m.member("chat.member_left", "bob")
	m.messageSent("gone")
	back := m.returns(address, "bob", mark)
	require.Equal(t, []string{"read", "held", "member_left bob"}, back.seen())
	m.release()
	m.member("chat.member_added", "bob")
	back.expect(t, "read", "held", "member_left bob", "member_added bob")
}

func TestRedial_DropsEventsFromAfterTheToken(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	one, _ := m.gateway(settings{})
	two, _ := m.gateway(settings{})
	bob := connect(t, one, "bob") // bob's only resume token is the one in the reply to connect
	m.messageSent("1")
	m.messageSent("2")
	bob.expect(t, "1", "2")
	bob.Abort()
	m.messageSent("3")
	next, err := bob.Redial(t.Context(), "ws://"+two+"/ws")
	require.NoError(t, err)
	defer next.Close()
	bob.expect(t, "1", "2", "3")
	next.Abort()
	m.messageSent("4")
	last, err := next.Redial(t.Context(), "ws://"+one+"/ws")
	require.NoError(t, err)
	defer last.Close()
	bob.expect(t, "1", "2", "3", "4")
}

// A client connects with a damaged resume token. The gateway must accept the connection, and start it without missed
// events. If the gateway refused the connection, a client that has stored such a token could never connect again.
func TestResume_AnInvalidTokenStartsWithoutMissedEvents(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	token := m.settled(bob)
	m.messageSent("missed")
	for _, mangled := range []string{"nonsense", token[:len(token)-1], token + "A", strings.Repeat("A", 4000)} {
		back := m.returns(address, "bob", mangled)
		require.False(t, back.Connected().Resumed, mangled)
		require.Empty(t, back.Connected().NotRecovered)
		require.Empty(t, back.seen())
	}
	_, err := bob.Request(t.Context(), map[string]any{"type": "connect", "data": map[string]any{"resume_token": token}})
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "malformed", refused.Code)
}

func TestConnect_SubscribesToRoomsAndListsTheRefusedOnes(t *testing.T) {
	t.Parallel()
	m := begin(t)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	token := m.settled(bob)
	bob.Abort()
	online := m.owners["presence"].Event("alice", "presence.came_online", `{"user_id":"alice"}`)
	online.Version = 5
	m.owners["presence"].Allow("bob", "presence:alice", true, online)
	for _, had := range []string{token, ""} {
		back := m.returns(address, "bob", had, "presence:alice", "presence:eve", "nothing:x")
		require.Equal(t, []string{"presence.came_online alice"}, back.seen(), "before the reply")
		connected := back.Connected()
		require.Equal(t, had != "", connected.Resumed)
		require.Equal(t, []string{"presence:alice"}, connected.Rooms)
		refused := map[string]string{}
		for _, r := range connected.Refused {
			refused[r.Room] = r.Error.Code
		}
		require.Equal(t, map[string]string{"presence:eve": "not_a_member", "nothing:x": "not_found"}, refused)
	}
}

func TestResume_TheLimitIsASetting(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.config.ResumeEvents = 2
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(often)
	bob := connect(t, address, "bob")
	mark := m.settled(bob)
	m.messageSent("1")
	m.messageSent("2")
	require.Equal(t, []string{"1", "2"}, m.returns(address, "bob", mark).seen())
	m.messageSent("3")
	back := m.returns(address, "bob", mark)
	require.Empty(t, back.seen())
	require.True(t, back.Connected().Resumed)
	require.Equal(t, []string{"conversation:g"}, back.Connected().NotRecovered)
}

func TestShutdown_SendsAResumeToken(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	one, stop := m.gateway(settings{cover: time.Hour})
	two, _ := m.gateway(settings{})
	bob := connect(t, one, "bob")
	first := bob.ResumeToken()
	m.messageSent("seen")
	bob.expect(t, "seen")
	m.positions()
	for n := range 3 {
		require.Eventually(t, func() bool {
			return metric(t, one, fmt.Sprintf(`gateway_partition_position{partition="%d",topic="chat-events"} 2`, n))
		}, 10*time.Second, time.Millisecond)
	}
	stop()
	<-bob.Done()
	require.NotEqual(t, first, bob.ResumeToken())
	m.messageSent("missed")
	m.returns(two, "bob", bob.ResumeToken()).expect(t, "missed")
}

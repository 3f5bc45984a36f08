package ws_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// deliver makes the gateway deliver an event of an owner's log, and count the log as complete up to this event.
func (m *mesh) deliver(e envelope.Event) {
	declared, _ := m.catalog.Event(e.Type)
	shard := m.hub.Shard(e.Source)
	shard.Deliver(hub.NewEvent(e, declared))
	shard.SetComplete(e.Position)
}

func (m *mesh) posted(n int) envelope.Event {
	return m.owners["feed"].Append("carol", "feed.post_created",
		fmt.Sprintf(`{"post_id":"7","author_id":"carol","body":"%d"}`, n))
}

// A client sends the frame unsubscribe right after the frame connect, while the owner of the room is unavailable. The
// unsubscribe must end the subscription that connect has begun: no event of the room may follow the reply to
// unsubscribe, and the reply to connect must not list the room. This must hold for a client that resumes, for a client
// that does not, and for a client whose rooms are restored from its session.
func TestUnsubscribe_BehindAConnectEndsItsSubscriptions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ resumes, restores bool }{
		"resumed": {resumes: true}, "new": {}, "restored": {resumes: true, restores: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := begin(t, ws.Options{}, hub.Options{CoverEvery: 10 * time.Millisecond})
			feed := m.owners["feed"]
			feed.Allow("alice", "post:7", true, m.posted(0))
			feed.Allow("alice", "post:8", true)
			m.deliver(feed.Log()[0])
			first := m.dial(t, client.Options{Rooms: []string{"post:7", "post:8"}})
			session := first.Connected().SessionID
			kept := func(rooms ...string) {
				require.Eventually(t, func() bool {
					return fmt.Sprint(m.keeper.Session("alice", session)) == fmt.Sprint(rooms)
				}, 10*time.Second, time.Millisecond, "the rooms of the session")
			}
			kept("post:7", "post:8")
			first.Close()
			m.deliver(m.posted(1)) // the client misses this event

			feed.SetAway(true)
			connect := map[string]any{"session_id": session}
			if !c.restores {
				connect["rooms"] = []string{"post:7", "post:8"}
			}
			if c.resumes {
				connect["resume_token"] = first.ResumeToken()
			}
			data, err := json.Marshal(connect)
			require.NoError(t, err)
			socket := m.raw(t, "")
			write(t, socket, `{"id":"connect","type":"connect","data":`+string(withToken(t, data))+`}`+"\n"+
				`{"id":"un","type":"unsubscribe","data":{"rooms":["post:7"]}}`+"\n"+send)
			require.Equal(t, "c1", read(t, socket).ReplyTo, "the frames after connect were handled")
			// Let the gateway send two more reports before the owner has answered about the rooms of the connection.
			reports := len(m.keeper.Reports())
			require.Eventually(t, func() bool { return len(m.keeper.Reports()) >= reports+2 }, 20*time.Second, time.Millisecond)
			feed.SetAway(false)
			var connected *client.Connected
			for unsubscribed := false; !unsubscribed || connected == nil; {
				switch f := read(t, socket); {
				case f.ReplyTo == "un":
					unsubscribed = true
				case f.ReplyTo == "connect":
					require.True(t, f.OK, "%+v", f.Error)
					connected = new(client.Connected)
					require.NoError(t, json.Unmarshal(f.Data, connected))
				default:
					require.False(t, unsubscribed && f.Type == "event", "after the reply to unsubscribe: %+v", f)
				}
			}
			require.Equal(t, []string{"post:8"}, connected.Rooms)
			m.deliver(m.posted(2))
			write(t, socket, `{"id":"last","type":"ping"}`)
			require.Equal(t, "last", read(t, socket).ReplyTo, "no event of the room follows")
			kept("post:8")
		})
	}
}

// A client sends the frame subscribe for a room right after the frame connect, and the reply to subscribe is sent
// before the reply to connect. The session must keep this room besides its earlier one.
func TestSubscribe_BehindAPendingConnectIsKeptForTheSession(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	feed := m.owners["feed"]
	feed.Allow("alice", "post:7", true)
	m.owners["presence"].Allow("alice", "presence:bob", true)
	first := m.dial(t, client.Options{Rooms: []string{"post:7"}})
	session := first.Connected().SessionID
	kept := func(rooms ...string) {
		t.Helper()
		require.Eventually(t, func() bool {
			return fmt.Sprint(m.keeper.Session("alice", session)) == fmt.Sprint(rooms)
		}, 10*time.Second, time.Millisecond, "the rooms of the session")
	}
	kept("post:7")
	first.Close()

	feed.SetAway(true)
	socket := m.raw(t, "")
	write(t, socket, fmt.Sprintf(`{"id":"connect","type":"connect","data":{"token":"alice","session_id":%q}}`, session)+"\n"+
		`{"id":"1","type":"subscribe","data":{"rooms":["presence:bob"]}}`)
	require.Equal(t, "1", read(t, socket).ReplyTo)
	reports := len(m.keeper.Reports()) // the next two reports are sent before all rooms of the session are known
	require.Eventually(t, func() bool { return len(m.keeper.Reports()) >= reports+2 }, 20*time.Second, time.Millisecond)
	feed.SetAway(false)
	for read(t, socket).ReplyTo != "connect" { // skip heartbeats
	}
	kept("post:7", "presence:bob")
}

// withToken adds alice's token to the data of a connect frame.
func withToken(t *testing.T, data []byte) []byte {
	t.Helper()
	all := map[string]any{}
	require.NoError(t, json.Unmarshal(data, &all))
	all["token"] = "alice"
	text, err := json.Marshal(all)
	require.NoError(t, err)
	return text
}

// A client is subscribed to a room and subscribes again. Before the reply to the second subscribe, the client gets the
// frame "unsubscribed". This frame must concern only the first subscription: the new subscription must remain.
func TestSubscribe_IsNotEndedByAnUnsubscribedBeforeItsReply(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) { s.lease = 50 * time.Millisecond })
	feed := m.owners["feed"]
	feed.Allow("alice", "post:7", true)
	socket := m.raw(t, "alice")
	ready(t, socket)
	write(t, socket, `{"id":"1","type":"subscribe","data":{"rooms":["post:7"]}}`)
	require.Equal(t, "1", read(t, socket).ReplyTo)

	release := feed.Hold("post:7")
	t.Cleanup(release)
	write(t, socket, `{"id":"2","type":"subscribe","data":{"rooms":["post:7"]}}`)
	<-feed.Hanging() // the owner has decided about the subscription, but the gateway has no answer yet
	feed.Allow("alice", "post:7", false)
	f := read(t, socket)
	require.Equal(t, "unsubscribed", f.Type)
	require.Equal(t, "post:7", f.Room)
	feed.Allow("alice", "post:7", true)
	release()
	f = read(t, socket)
	require.Equal(t, "2", f.ReplyTo)
	require.True(t, f.OK, "%+v", f.Error)
	m.deliver(m.posted(1))
	require.Equal(t, "feed.post_created", read(t, socket).Event)
}

// A connection waits until the rooms of its session are read. The connection must get heartbeats, like every connection
// whose token was accepted. Later frames must wait until the rooms of the session are known.
func TestHeartbeat_IsSentWhileTheSessionsRoomsAreRead(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{CoverEvery: 10 * time.Millisecond}, func(s *setup) {
		s.restoreWithin, s.reportEvery = time.Hour, time.Hour // the gateway has no answer before the test allows one
	})
	m.owners["presence"].Allow("alice", "presence:bob", true)
	first := m.dial(t, client.Options{Rooms: []string{"presence:bob"}})
	session := first.Connected().SessionID
	require.Eventually(t, func() bool { return len(m.keeper.Session("alice", session)) == 1 }, 10*time.Second, time.Millisecond)
	first.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	release := m.keeper.Hold(session)
	t.Cleanup(release)
	socket := m.raw(t, "")
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(20*time.Second)))
	write(t, socket, fmt.Sprintf(`{"id":"connect","type":"connect","data":{"token":"alice","session_id":%q}}`, session)+"\n"+
		`{"id":"p","type":"ping"}`)
	select {
	case <-m.keeper.Hanging():
	case <-ctx.Done():
		t.Fatal("the gateway does not ask for the rooms of the session")
	}
	_, text, err := socket.ReadMessage()
	require.NoError(t, err)
	require.Equal(t, `{"type":"heartbeat"}`, string(text))
	release()
	var replies []string
	for len(replies) < 2 {
		replies = append(replies, read(t, socket).ReplyTo)
	}
	require.ElementsMatch(t, []string{"connect", "p"}, replies)
}

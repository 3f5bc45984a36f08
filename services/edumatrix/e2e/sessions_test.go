//go:build integration

package e2e

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/shared/client"
)

type sessionsPage struct {
	Sessions []struct {
		SessionID string    `json:"session_id"`
		Device    string    `json:"device"`
		Gateway   string    `json:"gateway"`
		Since     time.Time `json:"since"`
		Connected bool      `json:"connected"`
	} `json:"sessions"`
}

// listed waits until the connected sessions of the user are those of exactly the given devices. It returns all sessions
// of the user.
func (p *person) listed(devices ...string) (page sessionsPage) {
	p.t.Helper()
	slices.Sort(devices)
	eventually(p.t, "sessions", func() bool {
		page = sessionsPage{}
		if err := p.ask("presence.sessions", map[string]any{}, &page); err != nil {
			p.t.Fatal(err)
		}
		var got []string
		for _, s := range page.Sessions {
			if s.Connected {
				got = append(got, s.Device)
			}
		}
		slices.Sort(got)
		return slices.Equal(got, devices)
	})
	return page
}

func (m *mesh) device(t *testing.T, user, name string, gateway int) *client.Client {
	t.Helper()
	ctx, cancel := timeout()
	defer cancel()
	c, err := client.Dial(ctx, client.Options{URL: m.socket(gateway), Protobuf: m.protobuf, Token: mint(t, user, time.Hour), Device: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// sessionEnded waits until a connection is closed because its session was ended.
func sessionEnded(t *testing.T, c *client.Client) {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("the connection was not closed")
	}
	var closed *websocket.CloseError
	if !errors.As(c.Err(), &closed) || closed.Code != 4501 {
		t.Fatalf("the connection ended with %v", c.Err())
	}
}

// testSessions checks that users can list and end only their own sessions, and that a session continues over several
// connections and gateways.
func testSessions(t *testing.T, m *mesh) {
	bob, stranger := m.connect(t, someone("bob"), 1), m.connect(t, someone("mallory"), 0)
	phone := m.device(t, bob.id, "phone, \"blue\"", 0)
	page := bob.listed("Go-http-client/1.1", "phone, \"blue\"")
	if page.Sessions[0].SessionID != phone.Connected().SessionID || phone.Connected().SessionID == bob.Connected().SessionID {
		t.Fatalf("%+v, of the phone %s", page, phone.Connected().SessionID)
	}
	stranger.listed("Go-http-client/1.1")
	stranger.refused("not_found", "presence.end_session", map[string]any{"session_id": phone.Connected().SessionID})

	ctx, cancel := timeout()
	defer cancel()
	resumed, err := phone.Redial(ctx, m.socket(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(resumed.Close)
	if resumed.Connected().SessionID != phone.Connected().SessionID {
		t.Fatalf("the session resumed as %s, but was %s", resumed.Connected().SessionID, phone.Connected().SessionID)
	}
	again := bob.listed("Go-http-client/1.1", "phone, \"blue\"")
	if !again.Sessions[0].Since.Equal(page.Sessions[0].Since) || len(again.Sessions) != 2 {
		t.Fatalf("%+v, but %+v before it resumed", again, page)
	}

	ended := bob.do("presence.end_session", map[string]any{"session_id": phone.Connected().SessionID})
	sessionEnded(t, resumed)
	if same := bob.do("presence.end_session", map[string]any{"session_id": phone.Connected().SessionID}); ended.Stream != "sessions:"+bob.id ||
		same.Version != ended.Version || same.Kind != ended.Kind {
		t.Errorf("ended: %+v, again: %+v", ended, same)
	}
	old, err := client.Dial(ctx, client.Options{URL: m.socket(0), Token: mint(t, bob.id, time.Hour), Protobuf: m.protobuf,
		SessionID: phone.Connected().SessionID})
	if err == nil { // the gateway may learn only after the reply to connect that the session has ended
		t.Cleanup(old.Close)
		sessionEnded(t, old)
	}
	afresh, err := resumed.Redial(ctx, m.socket(0))
	if err != nil {
		t.Fatal(err)
	}
	if afresh.Connected().SessionID == phone.Connected().SessionID {
		t.Error("a client resumed a session that was ended")
	}
	t.Cleanup(afresh.Close)
	bob.listed("Go-http-client/1.1", "phone, \"blue\"")
	bob.refused("invalid_field", "presence.end_session", map[string]any{"session_id": "no such"})
}

// testSessionRooms checks that a session keeps the rooms to which its client has subscribed. A connection that resumes
// the session at another gateway must be subscribed to these rooms and get their events. An ended session must have no
// rooms.
func testSessionRooms(t *testing.T, m *mesh) {
	author, other := m.connect(t, someone("author"), 0), m.connect(t, someone("other"), 1)
	rooms := []string{"author:" + author.id, "presence:" + author.id}
	slices.Sort(rooms)
	bob := m.connect(t, someone("bob"), 0, func(o *client.Options) { o.Rooms = rooms })
	if _, err := bob.subscribe("author:" + other.id); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := timeout()
	defer cancel()
	if _, err := bob.Request(ctx, map[string]any{"type": "unsubscribe", "data": map[string]any{"rooms": []string{"author:" + other.id}}}); err != nil {
		t.Fatal(err)
	}
	session := bob.Connected().SessionID
	bob.Abort()
	goesOn := func(gateway int) *person {
		return m.connect(t, bob.id, gateway, func(o *client.Options) { o.SessionID = session })
	}
	var back *person
	eventually(t, "the rooms of the session", func() bool { // presence stores the rooms with the gateway's next report
		if back != nil {
			back.Abort()
			time.Sleep(100 * time.Millisecond) // after a burst of 256, a user may open 10 connections per second
		}
		back = goesOn(1)
		return slices.Equal(back.Connected().Rooms, rooms)
	})
	back.await("the author is online", func(e client.Event) bool { return e.Type == "presence.came_online" && field(e, "user_id") == author.id })
	unwanted := other.do("feed.create_post", map[string]any{"body": "from another author"})
	post := author.do("feed.create_post", map[string]any{"body": "for all subscribers"})
	back.awaitVersion(post.Stream, 1)
	if got := back.versions(unwanted.Stream); len(got) > 0 {
		t.Errorf("the connection got a post of an author after it unsubscribed")
	}
	if stranger := m.connect(t, someone("mallory"), 0, func(o *client.Options) { o.SessionID = session }); len(stranger.Connected().Rooms) > 0 {
		t.Errorf("another user is subscribed to %q", stranger.Connected().Rooms)
	}

	bob = m.connect(t, bob.id, 0)
	bob.do("presence.end_session", map[string]any{"session_id": session})
	sessionEnded(t, back.Client)
	ended, err := client.Dial(ctx, client.Options{URL: m.socket(0), Protobuf: m.protobuf, Token: mint(t, bob.id, time.Hour), SessionID: session})
	if err != nil {
		return // the gateway closed the connection before it replied to connect, because the session has ended
	}
	t.Cleanup(ended.Close)
	if rooms := ended.Connected().Rooms; len(rooms) > 0 {
		t.Errorf("an ended session still has the rooms %q", rooms)
	}
	sessionEnded(t, ended)
}

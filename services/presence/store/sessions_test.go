//go:build integration

package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/presence/store"
)

// begin reports that a connection of a session has been opened.
func (g *gateway) begin(connection, user, session, device string, since time.Time) {
	g.t.Helper()
	g.users[connection] = user
	g.report(false, &meshv1.ConnectionChange{Connection: connection, User: user, Session: session, Device: device,
		ConnectedAt: timestamppb.New(since)})
}

func (g *gateway) covered(connection, session, device, token string, gone bool) {
	g.t.Helper()
	user := g.users[connection]
	if gone {
		delete(g.users, connection)
	}
	g.report(false, &meshv1.ConnectionChange{Connection: connection, User: user, Session: session, Device: device,
		ResumeToken: token, Gone: gone})
}

func sessions(t *testing.T, s *store.Store, user string) (all []string) {
	t.Helper()
	list, err := s.Sessions(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		all = append(all, fmt.Sprintf("%s %q at %s since %d, %v, token %q", one.ID, one.Device, one.Gateway,
			one.Since.Unix(), one.Connected, one.ResumeToken))
		if time.Since(one.Seen).Abs() > time.Minute {
			t.Errorf("%s was seen at %v", one.ID, one.Seen)
		}
	}
	return all
}

func wantSessions(t *testing.T, s *store.Store, user string, want ...string) {
	t.Helper()
	if got := sessions(t, s, user); !slices.Equal(got, want) {
		t.Fatalf("the sessions of %s are\n%q, not\n%q", user, got, want)
	}
}

func end(t *testing.T, s *store.Store, user, session string) int64 {
	t.Helper()
	number, err := s.EndSession(t.Context(), user, session)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func TestSessions_ContinueOverConnections(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		wantSessions(t, s, "bob")
		a.begin("1", "bob", "s1", "a phone, blue", time.Unix(100, 0))
		a.begin("2", "bob", "s2", "", time.Unix(200, 0))
		a.begin("3", "carol", "s3", "desk", time.Unix(300, 0))
		wantSessions(t, s, "bob", `s2 "" at a since 200, true, token ""`, `s1 "a phone, blue" at a since 100, true, token ""`)
		a.covered("1", "s1", "a phone, blue", "m1", false)
		a.covered("2", "s2", "", "m2", true)
		wantSessions(t, s, "bob", `s2 "" at a since 200, false, token "m2"`,
			`s1 "a phone, blue" at a since 100, true, token "m1"`)

		// A client resumes the session at gateway b before gateway a has noticed that the client's connection to a has
		// ended.
		b.begin("4", "bob", "s1", "a phone, blue", time.Unix(900, 0))
		a.covered("1", "s1", "a phone, blue", "m0", true)
		wantSessions(t, s, "bob", `s2 "" at a since 200, false, token "m2"`,
			`s1 "a phone, blue" at b since 100, true, token "m1"`)
	})
}

func TestEndSession_ClosesItsConnectionsAndLaterOnes(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		a.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		a.begin("2", "bob", "s2", "desk", time.Unix(200, 0))
		if number := end(t, s, "carol", "s1"); number != 0 {
			t.Errorf("carol ended the session of bob: %d", number)
		}
		first := end(t, s, "bob", "s1")
		if first == 0 {
			t.Fatal("the session was not found")
		}
		if again := end(t, s, "bob", "s1"); again != first {
			t.Errorf("ending it again has the number %d, the first time it was %d", again, first)
		}
		wantSessions(t, s, "bob", `s2 "desk" at a since 200, true, token ""`)
		for range 2 { // each answer names the connection, until the gateway has closed it
			if a.report(false); !slices.Equal(a.ended, []string{"1"}) {
				t.Fatalf("a is asked to close %q", a.ended)
			}
		}
		a.covered("1", "s1", "phone", "m", true)
		if len(a.ended) > 0 {
			t.Errorf("a is asked to close %q, which is closed already", a.ended)
		}
		b.begin("3", "bob", "s1", "phone", time.Unix(300, 0))
		if !slices.Equal(b.ended, []string{"3"}) {
			t.Errorf("b is asked to close %q", b.ended)
		}
		wantSessions(t, s, "bob", `s2 "desk" at a since 200, true, token ""`)
		want(t, s, "bob", true)
	})
}

// A device that changes networks has two connections for a while. Reports of the older connection must not change the
// session's gateway and token.
func TestSessions_OfADeviceThatChangesNetworks(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		a.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		b.begin("2", "bob", "s1", "phone", time.Unix(200, 0))
		b.covered("2", "s1", "phone", "m2", false)
		a.covered("1", "s1", "phone", "m1", false) // the gateway still writes to the old connection
		wantSessions(t, s, "bob", `s1 "phone" at b since 100, true, token "m2"`)
		a.covered("1", "s1", "phone", "m1", true) // the gateway has noticed that the old connection is broken
		wantSessions(t, s, "bob", `s1 "phone" at b since 100, true, token "m2"`)

		a.begin("3", "bob", "s1", "phone", time.Unix(300, 0))
		end(t, s, "bob", "s1")
		a.report(false)
		b.report(false)
		if !slices.Equal(a.ended, []string{"3"}) || !slices.Equal(b.ended, []string{"2"}) {
			t.Errorf("a is asked to close %q, b %q", a.ended, b.ended)
		}
	})
}

// A full report of a gateway is too large for one request and is sent in parts. No user may be shown as offline between
// the parts.
func TestReport_AllInParts(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		for _, name := range []string{"1", "2", "3"} {
			g.open(name, "user-"+name)
		}
		before := want(t, s, "user-2", true)
		part := func(n int32, more bool, connections ...string) store.Answer {
			t.Helper()
			g.number++
			m := &meshv1.ReportRequest{Gateway: "g", Number: g.number, All: true, Part: n, More: more}
			for _, c := range connections {
				m.Changes = append(m.Changes, &meshv1.ConnectionChange{Connection: c, User: "user-" + c})
			}
			if !more {
				m.Count, m.Digest = 2, store.Hash("2", "user-2")+store.Hash("4", "user-4")
			}
			answer, _, err := s.Report(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			return answer
		}
		if answer := part(0, true, "4"); answer != store.OK {
			t.Fatalf("the first part: %s", answer)
		}
		want(t, s, "user-1", true)
		if answer := part(1, false, "2"); answer != store.OK {
			t.Fatalf("the last part: %s", answer)
		}
		want(t, s, "user-1", false)
		want(t, s, "user-3", false)
		want(t, s, "user-4", true)
		if got := want(t, s, "user-2", true); got.Number != before.Number {
			t.Errorf("user-2 changed from %d to %d", before.Number, got.Number)
		}
	})
}

func TestSessions_OfAStoppedGatewayKeepTheirLastResumeToken(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		g.begin("2", "bob", "s2", "desk", time.Unix(200, 0))
		g.number++
		if _, _, err := s.Report(t.Context(), &meshv1.ReportRequest{Gateway: "g", Number: g.number, Ends: true,
			Changes: []*meshv1.ConnectionChange{{Connection: "1", User: "bob", Gone: true, ResumeToken: "last"}}}); err != nil {
			t.Fatal(err)
		}
		wantSessions(t, s, "bob", `s2 "desk" at g since 200, false, token ""`, `s1 "phone" at g since 100, false, token "last"`)
		want(t, s, "bob", false)
	})
}

func TestSessions_OfAGatewayWithoutReportsAreNotConnected(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", 50*time.Millisecond)
		g := newGateway(t, s, "g")
		g.report(true)
		g.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		runOut(t, s, func() {})
		wantSessions(t, s, "bob", `s1 "phone" at g since 100, false, token ""`)
	})
}

// A client begins a new session with every connection. The number of the user's sessions must be bounded, so that the
// sessions do not fill Redis.
func TestSessions_AreBoundedPerUser(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.begin("stays", "bob", "stays", "desk", time.Unix(1, 0))
		for n := range 70 {
			connection := fmt.Sprint("c", n)
			g.begin(connection, "bob", fmt.Sprint("s", n), "phone", time.Unix(int64(100+n), 0))
			g.covered(connection, fmt.Sprint("s", n), "phone", "", true)
		}
		all, err := s.Sessions(t.Context(), "bob")
		if err != nil || len(all) != 50 || all[0].ID != "s69" || all[49].ID != "stays" {
			t.Fatalf("%d sessions, %v: %+v", len(all), err, all)
		}
	})
}

// Redis is emptied. The answer to the gateway must request all its connections, and their sessions must be stored
// again.
func TestSessions_AreReportedAgainAfterRedisWasEmptied(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		if err := r.FlushDB(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if answer := g.report(false); answer != store.ReportAll {
			t.Fatalf("an unknown gateway: %s", answer)
		}
		g.number++
		all := &meshv1.ReportRequest{Gateway: "g", Number: g.number, All: true, Count: 1, Digest: store.Hash("1", "bob"),
			Changes: []*meshv1.ConnectionChange{{Connection: "1", User: "bob", Session: "s1", Device: "phone",
				ConnectedAt: timestamppb.New(time.Unix(100, 0))}}}
		if answer, _, err := s.Report(t.Context(), all); err != nil || answer != store.OK {
			t.Fatal(answer, err)
		}
		wantSessions(t, s, "bob", `s1 "phone" at g since 100, true, token ""`)
	})
}

// subscribes reports the rooms of a connection of a session.
func (g *gateway) subscribes(connection, session string, gone bool, rooms ...string) {
	g.t.Helper()
	user := g.users[connection]
	if gone {
		delete(g.users, connection)
	}
	g.report(false, &meshv1.ConnectionChange{Connection: connection, User: user, Session: session, Gone: gone,
		ConnectedAt: timestamppb.New(time.Unix(1, 0)), Rooms: &meshv1.SubscribedRooms{Rooms: rooms}})
}

func wantRooms(t *testing.T, s *store.Store, user, session string, want ...string) {
	t.Helper()
	got, err := s.SessionRooms(t.Context(), []store.SessionKey{{User: user, ID: session}, {User: user, ID: "never"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !slices.Equal(got[0], want) || len(got[1]) > 0 {
		t.Fatalf("the rooms of %s of %s are %q, not %q", session, user, got, want)
	}
}

func TestSessionRooms_AreThoseOfItsNewestConnection(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		a.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		wantRooms(t, s, "bob", "s1")
		a.subscribes("1", "s1", false, "post:7", "presence:alice")
		wantRooms(t, s, "bob", "s1", "post:7", "presence:alice")
		wantRooms(t, s, "carol", "s1")
		a.covered("1", "s1", "phone", "m1", false)
		wantRooms(t, s, "bob", "s1", "post:7", "presence:alice")

		// A client resumes the session at gateway b before gateway a has reported the last rooms.
		b.begin("2", "bob", "s1", "phone", time.Unix(200, 0))
		restored := &meshv1.ConnectionChange{Connection: "2", User: "bob", Session: "s1", Device: "phone",
			ConnectedAt: timestamppb.New(time.Unix(200, 0)), Rooms: &meshv1.SubscribedRooms{Rooms: []string{"post:6"}, Restored: true}}
		b.report(false, restored)
		wantRooms(t, s, "bob", "s1", "post:7", "presence:alice")
		a.subscribes("1", "s1", false, "post:8")
		wantRooms(t, s, "bob", "s1", "post:8")
		b.subscribes("2", "s1", false, "post:9")
		a.subscribes("1", "s1", false, "post:7")
		wantRooms(t, s, "bob", "s1", "post:9")
		a.subscribes("1", "s1", true, "post:7")
		wantRooms(t, s, "bob", "s1", "post:9")
		b.subscribes("2", "s1", false)
		wantRooms(t, s, "bob", "s1")
		b.subscribes("2", "s1", true, "post:9")
		wantRooms(t, s, "bob", "s1", "post:9")
		wantSessions(t, s, "bob", `s1 "" at b since 100, false, token "m1"`)

		// The newer of two connections has ended. Rooms that the older connection reports must be stored again.
		a.begin("3", "bob", "s1", "phone", time.Unix(300, 0))
		b.begin("4", "bob", "s1", "phone", time.Unix(400, 0))
		b.subscribes("4", "s1", true, "post:1")
		a.subscribes("3", "s1", false, "post:2")
		wantRooms(t, s, "bob", "s1", "post:2")

		// The rooms in Redis are lost. Restored rooms must then be stored, until newer rooms are reported.
		if err := r.Del(t.Context(), r.Keys(t.Context(), "*rooms:bob").Val()...).Err(); err != nil {
			t.Fatal(err)
		}
		wantRooms(t, s, "bob", "s1")
		restored.Connection = "4"
		b.users["4"] = "bob"
		b.report(false, restored)
		wantRooms(t, s, "bob", "s1", "post:6")
		a.subscribes("3", "s1", false, "post:2")
		wantRooms(t, s, "bob", "s1", "post:2")

		end(t, s, "bob", "s1")
		wantRooms(t, s, "bob", "s1")
		a.subscribes("3", "s1", false, "post:2")
		wantRooms(t, s, "bob", "s1")
	})
}

func TestSessionRooms_AreForgottenWithTheirSession(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		for n := range 70 {
			connection, session := fmt.Sprint("c", n), fmt.Sprint("s", n)
			g.begin(connection, "bob", session, "phone", time.Unix(int64(100+n), 0))
			g.subscribes(connection, session, true, "post:7")
		}
		wantRooms(t, s, "bob", "s0")
		wantRooms(t, s, "bob", "s69", "post:7")
		var kept int64
		for _, key := range r.Keys(t.Context(), "*rooms:bob").Val() {
			if kept = r.HLen(t.Context(), key).Val(); r.PTTL(t.Context(), key).Val() <= 0 {
				t.Errorf("%s does not expire", key)
			}
		}
		if kept != 50 {
			t.Errorf("the rooms of %d sessions are stored", kept)
		}
	})
}

// A gateway's lease expires. The rooms that the gateway last reported must stay stored with the sessions of its
// connections.
func TestSessionRooms_OfAGatewayWithoutReportsAreKept(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", 50*time.Millisecond)
		g := newGateway(t, s, "g")
		g.report(true)
		g.begin("1", "bob", "s1", "phone", time.Unix(100, 0))
		g.subscribes("1", "s1", false, "post:7")
		runOut(t, s, func() {})
		wantSessions(t, s, "bob", `s1 "" at g since 100, false, token ""`)
		wantRooms(t, s, "bob", "s1", "post:7")
	})
}

// A connection is opened, subscribes to rooms and is closed between two reports of its gateway. The session and the
// rooms of the connection must be stored nevertheless.
func TestSessionRooms_OfAConnectionThatWasNeverReportedBefore(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		passes := func(connection, room string) {
			t.Helper()
			a.report(false, &meshv1.ConnectionChange{Connection: connection, User: "bob", Session: "s1", Device: "phone", Gone: true,
				ConnectedAt: timestamppb.New(time.Unix(100, 0)), ResumeToken: "m", Rooms: &meshv1.SubscribedRooms{Rooms: []string{room}}})
		}
		passes("1", "post:7")
		wantSessions(t, s, "bob", `s1 "phone" at a since 100, false, token "m"`)
		wantRooms(t, s, "bob", "s1", "post:7")
		want(t, s, "bob", false)
		b.begin("2", "bob", "s1", "phone", time.Unix(200, 0))
		passes("3", "post:8")
		wantRooms(t, s, "bob", "s1", "post:8")
		b.subscribes("2", "s1", false, "post:9")
		passes("3", "post:8") // the same change again, as after a lost answer
		wantRooms(t, s, "bob", "s1", "post:9")
		end(t, s, "bob", "s1")
		passes("4", "post:8")
		wantRooms(t, s, "bob", "s1")
		wantSessions(t, s, "bob")
	})
}

package catalog_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
)

func TestValidID_AcceptsTheSubjectsOfIdentityProviders(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"alice", "auth0|5f7c8ec7c33c6c004bbafe82", "google-oauth2|103547991597142817347",
		"f:550e8400-e29b-41d4-a716-446655440000:bob", "waad|9v8Ot_dC-x", "a+b@x.y", "248289761001", "user@school.example",
		"00u1a2b3c4D5e6F7g8h9", strings.Repeat("a", 255)} {
		require.True(t, catalog.ValidID(id), id)
	}
	for _, id := range []string{"", "a b", "a;b", "a,b", "a=b", "a/b", "a%3Ab", "ä", "a\n", "a\x00", strings.Repeat("a", 256)} {
		require.False(t, catalog.ValidID(id), id)
	}
}

// id generates texts from a few characters: letters and digits, many separators that ids may contain, and "%", which an
// id must not contain.
var id = rapid.Custom(func(t *rapid.T) string {
	return string(rapid.SliceOfN(rapid.SampledFrom([]rune("ab3:|+.%@-_A")), 1, 8).Draw(t, "id"))
})

func TestEscapeID_IsInjective(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := id.Draw(t, "a"), id.Draw(t, "b")
		if (catalog.EscapeID(a) == catalog.EscapeID(b)) != (a == b) {
			t.Fatalf("%q and %q", a, b)
		}
		if strings.Contains(catalog.EscapeID(a), ":") {
			t.Fatalf("%q has a colon", catalog.EscapeID(a))
		}
		// An address with two ids must differ from the addresses with any other two ids.
		c, d := id.Draw(t, "c"), id.Draw(t, "d")
		same := catalog.Address("marker", a)+":"+catalog.EscapeID(b) == catalog.Address("marker", c)+":"+catalog.EscapeID(d)
		if same != (a == c && b == d) {
			t.Fatalf("%q %q and %q %q", a, b, c, d)
		}
		if user, ok := catalog.UserOfRoom(catalog.UserRoom(a)); !ok || user != a {
			t.Fatalf("the user of the room of %q is %q", a, user)
		}
		kind, back, ok := catalog.SplitAddress(catalog.Address("presence", a))
		if valid := catalog.ValidID(a); ok != valid || (valid && (kind != "presence" || back != a)) {
			t.Fatalf("%q became %q %q %v", a, kind, back, ok)
		}
	})
}

func TestSplitAddress_AcceptsOnlyEscapedIDs(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "presence", "presence:", "presence:f:1:ann", "presence:f%3a1", "presence:a%2Bb",
		"presence:a b", "presence:%3"} {
		_, _, ok := catalog.SplitAddress(address)
		require.False(t, ok, address)
	}
	kind, user, ok := catalog.SplitAddress("presence:f%3A1%3Aann")
	require.True(t, ok)
	require.Equal(t, []string{"presence", "f:1:ann"}, []string{kind, user})
}

func TestAddresses_OfTwoUsersNeverCollide(t *testing.T) {
	t.Parallel()
	c := load(t)
	online, _ := c.Event("presence.came_online")
	direct, _ := c.Command("chat.start_direct")
	group, _ := c.Command("chat.start_group")
	sessions, _ := c.Command("presence.end_session")
	require.NotNil(t, sessions)
	rapid.Check(t, func(t *rapid.T) {
		a, b := id.Filter(catalog.ValidID).Draw(t, "a"), id.Filter(catalog.ValidID).Draw(t, "b")
		if a == b {
			return
		}
		differ := func(what, x, y string) {
			if x == y {
				t.Fatalf("%s of %q and %q is %q", what, a, b, x)
			}
		}
		x := online.Place(&presencev1.CameOnline{UserId: a}, catalog.Origin{})
		y := online.Place(&presencev1.CameOnline{UserId: b}, catalog.Origin{})
		differ("stream", x.Stream, y.Stream)
		differ("room", x.Rooms[0], y.Rooms[0])
		differ("sessions", sessions.Stream(&presencev1.EndSession{}, catalog.Origin{Actor: a}),
			sessions.Stream(&presencev1.EndSession{}, catalog.Origin{Actor: b}))
		differ("user's room", catalog.UserRoom(a), catalog.UserRoom(b))
		differ("new group", group.Stream(&chatv1.StartGroup{}, catalog.Origin{Actor: a, CommandID: "1"}),
			group.Stream(&chatv1.StartGroup{}, catalog.Origin{Actor: b, CommandID: "1"}))
		differ("conversation", direct.Stream(&chatv1.StartDirect{UserId: "carol"}, catalog.Origin{Actor: a}),
			direct.Stream(&chatv1.StartDirect{UserId: "carol"}, catalog.Origin{Actor: b}))
	})
}

func TestAddresses_OfIDsWithoutAColonAreNotEscaped(t *testing.T) {
	t.Parallel()
	online, _ := load(t).Event("presence.came_online")
	place := online.Place(&presencev1.CameOnline{UserId: "a.b_c@d-1"}, catalog.Origin{})
	require.Equal(t, "presence:a.b_c@d-1", place.Stream)
	require.Equal(t, "user:auth0|1+x", catalog.UserRoom("auth0|1+x"))
}

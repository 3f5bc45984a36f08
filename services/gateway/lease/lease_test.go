package lease_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/lease"
)

func begin(t *testing.T) (*lease.Lease, *fake.Owner, func()) {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	keeper := fake.NewOwner(c, c.Connections())
	server := httptest.NewServer(keeper.Handler())
	t.Cleanup(server.Close)
	l := lease.New(lease.Options{Keeper: meshv1connect.NewConnectionServiceClient(server.Client(), server.URL),
		Every: 200 * time.Millisecond, Gather: time.Millisecond, Tokens: 30 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Run(ctx) }()
	end := func() { cancel(); <-done }
	t.Cleanup(end)
	return l, keeper, end
}

// open opens a connection without a session.
func open(l *lease.Lease, connection, user string) {
	l.Open(lease.Connection{ID: connection, User: user, Token: func() string { return "" }, End: func() {}})
}

// known evaluates the reports of a gateway to the keeper, the owner that stores which connections are open. It returns
// the connections that are open according to these reports, with their users, and the last report.
func known(reports []*meshv1.ReportRequest) (users map[string]string, last *meshv1.ReportRequest) {
	users = map[string]string{}
	for _, r := range reports {
		if last = r; r.All || r.Ends {
			clear(users)
		}
		for _, c := range r.Changes {
			if users[c.Connection] = c.User; c.Gone {
				delete(users, c.Connection)
			}
		}
	}
	return users, last
}

func TestReport_ContainsChangesWithCountAndDigest(t *testing.T) {
	t.Parallel()
	l, keeper, end := begin(t)
	open(l, "c1", "alice")
	open(l, "c2", "bob")
	l.Gone("c1")
	l.Gone("never")
	require.Eventually(t, func() bool {
		users, last := known(keeper.Reports())
		return len(users) == 1 && users["c2"] == "bob" && last.Count == 1 && last.Digest == lease.Hash("c2", "bob")
	}, 5*time.Second, time.Millisecond)
	for n, r := range keeper.Reports() {
		require.EqualValues(t, n+1, r.Number)
		require.Equal(t, keeper.Reports()[0].Gateway, r.Gateway)
	}
	end()
	users, last := known(keeper.Reports())
	require.True(t, last.Ends)
	require.Empty(t, users)
}

func TestReport_ContainsEverythingWhenAsked(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	open(l, "c1", "alice")
	require.Eventually(t, func() bool { users, _ := known(keeper.Reports()); return len(users) == 1 },
		5*time.Second, time.Millisecond)
	before := len(keeper.Reports())
	keeper.AskAgain()
	require.Eventually(t, func() bool {
		for _, r := range keeper.Reports()[before:] {
			if r.All && len(r.Changes) == 1 && r.Changes[0].Connection == "c1" {
				return true
			}
		}
		return false
	}, 5*time.Second, time.Millisecond)
}

func TestReport_ChangesDuringAnOutageAreReportedAfterIt(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	keeper.SetAway(true)
	open(l, "c1", "alice")
	open(l, "c2", "bob")
	require.Eventually(t, func() bool { return keeper.Refused() > 1 }, 5*time.Second, time.Millisecond)
	l.Gone("c1")
	keeper.SetAway(false)
	require.Eventually(t, func() bool {
		users, last := known(keeper.Reports())
		return len(users) == 1 && last.Digest == lease.Hash("c2", "bob")
	}, 5*time.Second, time.Millisecond)
}

func TestReport_ContainsSessionsWithTheirResumeTokens(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	var token atomic.Value
	token.Store("m1")
	since := time.UnixMicro(1e9)
	l.Open(lease.Connection{ID: "c1", User: "alice", Session: "s", Device: "phone", Since: since,
		Token: func() string { return token.Load().(string) }, End: func() {}})
	awaitReport := func(token string, gone bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			for _, r := range keeper.Reports() {
				for _, c := range r.Changes {
					if c.ResumeToken == token && c.Gone == gone && c.Connection == "c1" && c.User == "alice" && c.Session == "s" &&
						c.Device == "phone" && c.ConnectedAt.AsTime().Equal(since) {
						return true
					}
				}
			}
			return false
		}, 5*time.Second, time.Millisecond, "token %s, gone %v", token, gone)
	}
	awaitReport("m1", false)
	token.Store("m2")
	awaitReport("m2", false)
	token.Store("m3")
	l.Gone("c1")
	awaitReport("m3", true)
	_, last := known(keeper.Reports())
	require.Zero(t, last.Digest)
}

func TestReport_EndsTheConnectionsThatTheKeeperNames(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	ended := make(chan struct{}, 100)
	l.Open(lease.Connection{ID: "c1", User: "alice", Session: "s", Token: func() string { return "" },
		End: func() { l.Gone("c1"); ended <- struct{}{} }})
	l.Open(lease.Connection{ID: "c2", User: "alice", Session: "s2", Token: func() string { return "" },
		End: func() { t.Error("another connection was ended") }})
	keeper.EndSessions("c1", "never")
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the connection was not ended")
	}
	require.Eventually(t, func() bool { users, _ := known(keeper.Reports()); return len(users) == 1 },
		5*time.Second, time.Millisecond)
}

func TestReport_ManyChangesAreSentInParts(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	const many = 12_000
	var digest uint32
	for n := range many {
		id := fmt.Sprint("c", n)
		open(l, id, "alice")
		digest += lease.Hash(id, "alice")
	}
	keeper.AskAgain()
	require.Eventually(t, func() bool {
		var parts []*meshv1.ReportRequest
		for _, r := range keeper.Reports() {
			if r.All && r.Part == 0 {
				parts = nil
			}
			if r.All {
				parts = append(parts, r)
			}
		}
		if len(parts) == 0 {
			return false
		}
		reported := map[string]bool{}
		for n, r := range parts {
			if r.Part != int32(n) || len(r.Changes) > 5000 || r.More != (n < len(parts)-1) {
				return false
			}
			for _, c := range r.Changes {
				reported[c.Connection] = true
			}
		}
		last := parts[len(parts)-1]
		return len(reported) == many && last.Count == many && last.Digest == digest
	}, 10*time.Second, time.Millisecond)
}

// Many connections are opened and closed while the keeper is unavailable. Afterwards the keeper must get all open
// connections, and no connection that was opened and closed meanwhile.
func TestReport_ConnectionsThatEndedDuringAnOutageAreNotKept(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	open(l, "stays", "bob")
	require.Eventually(t, func() bool { users, _ := known(keeper.Reports()); return len(users) == 1 },
		5*time.Second, time.Millisecond)
	keeper.SetAway(true)
	for n := range 20_000 {
		id := fmt.Sprint("c", n)
		open(l, id, "alice")
		l.Gone(id)
	}
	refused := keeper.Refused()
	require.Eventually(t, func() bool { return keeper.Refused() > refused+2 }, 5*time.Second, time.Millisecond)
	before := len(keeper.Reports())
	keeper.SetAway(false)
	require.Eventually(t, func() bool { return len(keeper.Reports()) > before }, 5*time.Second, time.Millisecond)
	first := keeper.Reports()[before]
	require.True(t, first.All)
	require.Len(t, first.Changes, 1)
}

// subscribed opens a connection of a session. The returned function sets the rooms of the connection.
func subscribed(l *lease.Lease, connection, session string, end func()) (set func(rooms ...string)) {
	var rooms atomic.Value
	l.Open(lease.Connection{ID: connection, User: "alice", Session: session, Token: func() string { return "" }, End: end,
		Rooms: func() ([]string, bool) { all, known := rooms.Load().([]string); return all, known }})
	return func(all ...string) { rooms.Store(all); l.Subscribed(connection) }
}

func TestReport_ContainsTheRoomsOfSessionsWhenTheyChange(t *testing.T) {
	t.Parallel()
	l, keeper, end := begin(t)
	set := subscribed(l, "c1", "s", func() {})
	require.Eventually(t, func() bool { users, _ := known(keeper.Reports()); return len(users) == 1 }, 5*time.Second, time.Millisecond)
	for _, report := range keeper.Reports() {
		for _, change := range report.Changes {
			require.Nil(t, change.Rooms, "rooms that are not known yet are not reported")
		}
	}
	keeps := func(want ...string) {
		t.Helper()
		require.Eventually(t, func() bool { return slices.Equal(keeper.Session("alice", "s"), want) }, 5*time.Second, time.Millisecond,
			"%v", want)
	}
	set("a", "b")
	keeps("a", "b")
	set()
	keeps()

	// The rooms of a connection change while the keeper is unavailable. The rooms must be reported afterwards, even if
	// the connection has ended meanwhile.
	keeper.SetAway(true)
	set("c")
	refused := keeper.Refused()
	require.Eventually(t, func() bool { return keeper.Refused() > refused+1 }, 5*time.Second, time.Millisecond)
	keeper.SetAway(false)
	keeps("c")
	keeper.SetAway(true)
	set("d")
	l.Gone("c1")
	refused = keeper.Refused()
	require.Eventually(t, func() bool { return keeper.Refused() > refused+1 }, 5*time.Second, time.Millisecond)
	keeper.SetAway(false)
	keeps("d")

	// The keeper has lost everything. The rooms must be reported again.
	subscribed(l, "c2", "s", func() {})("e")
	keeps("e")
	keeper.Forget()
	keeper.AskAgain()
	keeps("e")

	// The rooms of the next connection were restored, and not chosen by its client. Such rooms must not replace rooms
	// that the keeper has stored.
	l.Open(lease.Connection{ID: "c4", User: "alice", Session: "s", Since: time.Now(), Token: func() string { return "" }, End: func() {},
		Rooms: func() ([]string, bool) { return []string{"restored"}, true }})
	reportsAll := func() {
		before := len(keeper.Reports())
		keeper.AskAgain()
		require.Eventually(t, func() bool {
			return slices.ContainsFunc(keeper.Reports()[before:], func(r *meshv1.ReportRequest) bool { return r.All })
		}, 5*time.Second, time.Millisecond)
	}
	reportsAll()
	keeps("e")
	l.Gone("c2")
	require.Eventually(t, func() bool { users, _ := known(keeper.Reports()); return users["c2"] == "" }, 5*time.Second, time.Millisecond)
	keeper.Forget()
	reportsAll()
	keeps("restored")

	// The gateway ends before it has reported some rooms. It must report them when it ends.
	subscribed(l, "c3", "s2", func() {})("f")
	l.Gone("c3")
	end()
	require.Equal(t, []string{"f"}, keeper.Session("alice", "s2"))
}

// The rooms of a connection were restored. Its client changes them while the next report has to contain all
// connections. The keeper must store the change.
func TestReport_ContainsAChangeOfRestoredRoomsAmongAllConnections(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	subscribed(l, "c1", "s", func() {})("stored")
	stored := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool { return slices.Equal(keeper.Session("alice", "s"), []string{want}) }, 5*time.Second,
			time.Millisecond, want)
	}
	stored("stored")
	var rooms atomic.Value
	rooms.Store([]string{"stored"})
	l.Open(lease.Connection{ID: "c2", User: "alice", Session: "s", Since: time.Now(), Token: func() string { return "" }, End: func() {},
		Rooms: func() ([]string, bool) { return rooms.Load().([]string), true }})
	l.Gone("c1")
	require.Eventually(t, func() bool { users, _ := known(keeper.Reports()); return users["c1"] == "" && users["c2"] != "" },
		5*time.Second, time.Millisecond)
	keeper.SetAway(true)
	for n := range 20_000 { // so many changes that the next report contains all connections instead
		open(l, fmt.Sprint("x", n), "bob")
		l.Gone(fmt.Sprint("x", n))
	}
	refused := keeper.Refused()
	require.Eventually(t, func() bool { return keeper.Refused() > refused+2 }, 5*time.Second, time.Millisecond)
	rooms.Store([]string{"new"})
	l.Subscribed("c2")
	keeper.SetAway(false)
	stored("new")
}

func TestReport_RoomsAreLimitedInBytes(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	const many = 100
	var rooms []string
	for n := range 500 {
		rooms = append(rooms, fmt.Sprintf("presence:%0200d", n))
	}
	for n := range many {
		subscribed(l, fmt.Sprint("c", n), fmt.Sprint("s", n), func() {})(rooms...)
	}
	keeper.AskAgain()
	for n := range many {
		require.Eventually(t, func() bool {
			kept := keeper.Session("alice", fmt.Sprint("s", n))
			return len(kept) > 100 && slices.Equal(kept, rooms[:len(kept)]) && len(strings.Join(kept, " ")) < 32<<10
		}, 5*time.Second, time.Millisecond)
	}
	for _, r := range keeper.Reports() {
		require.Less(t, proto.Size(r), 1100<<10)
	}
}

func TestRooms_ConcurrentCallsAreJoined(t *testing.T) {
	t.Parallel()
	l, keeper, _ := begin(t)
	subscribed(l, "c1", "s", func() {})("a", "b")
	require.Eventually(t, func() bool { return keeper.Session("alice", "s") != nil }, 5*time.Second, time.Millisecond)
	rooms, err := l.Rooms(t.Context(), "alice", "s")
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, rooms)

	keeper.Slow(20 * time.Millisecond) // so that requests wait while two calls are in flight, and then share one call
	before := keeper.Restored()
	var asking sync.WaitGroup
	for n := range 150 {
		asking.Go(func() {
			rooms, err := l.Rooms(t.Context(), "alice", fmt.Sprint("s", n))
			require.NoError(t, err)
			require.Empty(t, rooms)
		})
	}
	asking.Wait()
	require.Less(t, keeper.Restored()-before, 30)

	keeper.SetAway(true)
	_, err = l.Rooms(t.Context(), "alice", "s")
	require.Error(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Rooms(ended, "alice", "s")
	require.ErrorIs(t, err, context.Canceled)
}

package rooms

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
)

// A user resumes again and again. This user must get missed events at a limited rate only. Other users must not wait,
// and this user must not wait any more after an hour without a connection.
func TestPace_SpreadsTheReturnsOfOneUser(t *testing.T) {
	t.Parallel()
	var p pace
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	now, given := begun, 0
	for now.Sub(begun) < time.Minute {
		now = now.Add(p.wait("eve", now))
		p.charge("eve", 1500, 2000, now)
		given += 1500 + 2000/roomsPerUnit
		require.Zero(t, p.wait("bob", now))
		now = now.Add(time.Millisecond)
	}
	require.InDelta(t, maxPaced+60*pacedRate, given, 2*2000+1)
	p.charge("eve", 1_000_000, 0, now)
	require.Equal(t, maxPace, p.wait("eve", now), "the wait is bounded, whatever the user got")
	for n := range 100 {
		p.charge(fmt.Sprint("u", n), 1000, 0, now)
	}
	now = now.Add(time.Hour)
	require.Zero(t, p.wait("eve", now))
	p.charge("bob", 1, 0, now)
	require.Len(t, p.users, 1, "a user who is not limited any more is forgotten")
}

// After an outage of the network, all ten devices of a user with 2,000 rooms resume at once. No device may have to
// wait, even if all of them resume again a minute later.
func TestPace_TenDevicesWithTwoThousandRoomsDoNotWait(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for range 3 {
		for range 10 {
			require.Zero(t, p.wait("ann", now))
			p.charge("ann", 1500, 2000, now)
		}
		now = now.Add(time.Minute)
	}
	for range 30 { // three times, ten devices connect without a resume token, as after an update of the app
		require.Zero(t, p.wait("ann", now))
		p.charge("ann", 0, 2000, now)
	}
}

// A user who is over the rate connects, with or without a resume token. This user must wait, and must not delay other
// users.
func TestPace_AUserOverTheRateWaits(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	for name, lane := range map[string]func(a *ownerCalls) *lane[attaching]{
		"with a token":    func(a *ownerCalls) *lane[attaching] { return a.resuming },
		"without a token": func(a *ownerCalls) *lane[attaching] { return a.beginning },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			connections := hub.New(hub.Options{Catalog: c})
			r := New(Options{Catalog: c, Hub: connections, Log: slog.New(slog.DiscardHandler)}) // r does not run
			a := r.asks["chat"]
			now := time.Now()
			a.now = func() time.Time { return now }
			taken := func() (users []string) {
				batch := lane(a).take()
				for _, n := range batch {
					users = append(users, n.conn.User)
				}
				lane(a).finished(batch)
				return users
			}
			come := func(user string) {
				conn, err := connections.Add(user, frame.JSON)
				require.NoError(t, err)
				if name == "with a token" {
					r.Resume(conn, hub.Progress{"chat": {}}, nil, nil)
				} else {
					r.Attach(conn)
				}
			}
			come("eve")
			require.Equal(t, []string{"eve"}, taken())
			a.pace.charge("eve", 0, roomsPerUnit*(maxPaced+10*pacedRate), now)
			come("eve")
			come("bob")
			require.Equal(t, []string{"bob"}, taken())
			now = now.Add(9 * time.Second)
			require.Empty(t, taken())
			now = now.Add(time.Second)
			require.Equal(t, []string{"eve"}, taken())
			a.pace.charge("eve", 1_000_000, 0, now)
			come("eve")
			now = now.Add(maxPace - 1)
			require.Empty(t, taken())
			now = now.Add(1)
			require.Equal(t, []string{"eve"}, taken(), "the wait is bounded, whatever the user got")
		})
	}
}

// A connection begins, and another one resumes. The rooms that they get, and the missed events, must count against the
// rate of their user.
func TestPace_CountsEventsAndRooms(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	chat := fake.NewOwner(c, "chat")
	server := httptest.NewServer(chat.Handler())
	t.Cleanup(server.Close)
	const rooms = 400
	for n := range rooms {
		chat.Append("eve", "chat.conversation_started", fmt.Sprintf(`{"conversation_id":"e%d","user_ids":["eve"]}`, n))
	}
	connections := hub.New(hub.Options{Catalog: c})
	r := New(Options{Catalog: c, Hub: connections, Log: slog.New(slog.DiscardHandler), Owners: map[string]meshv1connect.OwnerServiceClient{
		"chat": meshv1connect.NewOwnerServiceClient(server.Client(), server.URL)}})
	a, now := r.asks["chat"], time.Now()
	a.now = func() time.Time { return now }
	left := func(units int) {
		t.Helper()
		b := *a.pace.users["eve"]
		require.True(t, b.Take(now, units))
		b = *a.pace.users["eve"]
		require.False(t, b.Take(now, units+1))
	}
	conn, err := connections.Add("eve", frame.JSON)
	require.NoError(t, err)
	_, err = a.begin(t.Context(), []attaching{{conn: conn}})
	require.NoError(t, err)
	left(maxPaced - rooms/roomsPerUnit)
	conn, err = connections.Add("eve", frame.JSON)
	require.NoError(t, err)
	_, err = a.resume(t.Context(), []attaching{{conn: conn, hasProgress: true}})
	require.NoError(t, err)
	left(maxPaced - 2*rooms/roomsPerUnit - rooms)
}

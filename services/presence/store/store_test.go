//go:build integration

package store_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// both runs a test on a real Redis and on the embedded one.
func both(t *testing.T, test func(t *testing.T, r *redis.Client)) {
	t.Helper()
	for name, settings := range map[string]func(testing.TB) backend.Redis{"real": meshtest.Redis, "embedded": meshtest.EmbeddedRedis} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := settings(t).Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = client.Close() })
			test(t, client)
		})
	}
}

// gateway is a stub of a gateway that reports its connections.
type gateway struct {
	t      *testing.T
	s      *store.Store
	name   string
	number int64
	users  map[string]string
	ended  []string // the connections that the gateway must close, from the last answer
}

func newGateway(t *testing.T, s *store.Store, name string) *gateway {
	return &gateway{t: t, s: s, name: name, users: map[string]string{}}
}

func (g *gateway) report(all bool, changes ...*meshv1.ConnectionChange) store.Answer {
	g.t.Helper()
	g.number++
	r := &meshv1.ReportRequest{Gateway: g.name, Number: g.number, All: all, Changes: changes}
	for c, u := range g.users {
		r.Count++
		r.Digest += store.Hash(c, u)
		if all {
			r.Changes = append(r.Changes, &meshv1.ConnectionChange{Connection: c, User: u})
		}
	}
	answer, ended, err := g.s.Report(g.t.Context(), r)
	if err != nil {
		g.t.Error(err) // not Fatal, since some gateways report from goroutines of their own
	}
	g.ended = ended
	return answer
}

func (g *gateway) open(connection, user string) store.Answer {
	g.t.Helper()
	g.users[connection] = user
	return g.report(false, &meshv1.ConnectionChange{Connection: connection, User: user})
}

func (g *gateway) gone(connection string) store.Answer {
	g.t.Helper()
	user := g.users[connection]
	delete(g.users, connection)
	return g.report(false, &meshv1.ConnectionChange{Connection: connection, User: user, Gone: true})
}

func state(t *testing.T, s *store.Store, user string) store.State {
	t.Helper()
	states, err := s.States(t.Context(), []string{user})
	if err != nil {
		t.Fatal(err)
	}
	return states[0]
}

func want(t *testing.T, s *store.Store, user string, online bool) store.State {
	t.Helper()
	got := state(t, s, user)
	if got.Online != online {
		t.Fatalf("%s online: %v", user, got.Online)
	}
	return got
}

func TestReport_AUserIsOnlineWhileAnyConnectionIsOpen(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		never := want(t, s, "bob", false)
		a.open("1", "bob")
		first := want(t, s, "bob", true)
		if first.Number <= never.Number {
			t.Errorf("online has the number %d, the state before the first connection %d", first.Number, never.Number)
		}
		b.open("2", "bob")
		a.gone("1")
		if got := want(t, s, "bob", true); got.Number != first.Number {
			t.Errorf("the number changed from %d to %d, but the state did not", first.Number, got.Number)
		}
		b.gone("2")
		if got := want(t, s, "bob", false); got.Number <= first.Number {
			t.Errorf("offline has the number %d, the state before it %d", got.Number, first.Number)
		}
		a.open("3", "bob")
		b.open("4", "carol")
		b.number++
		ends := &meshv1.ReportRequest{Gateway: "b", Number: b.number, Ends: true}
		if answer, _, err := s.Report(t.Context(), ends); err != nil || answer != store.OK {
			t.Fatal(answer, err)
		}
		want(t, s, "carol", false)
		want(t, s, "bob", true)
		b.number -= 2
		if answer := b.report(true); answer != store.Old {
			t.Errorf("a report that was sent before the end of the gateway and arrives after it: %s", answer)
		}
		want(t, s, "carol", false)
	})
}

func TestReport_AsksForAllConnectionsIfTheDigestDiffers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		if answer := g.open("1", "bob"); answer != store.ReportAll {
			t.Fatalf("an unknown gateway: %s", answer)
		}
		want(t, s, "bob", false)
		if answer := g.report(true); answer != store.OK {
			t.Fatalf("all: %s", answer)
		}
		want(t, s, "bob", true)
		g.users["2"] = "carol" // opened, but not reported yet, as after a lost report
		if answer := g.report(false); answer != store.ReportAll {
			t.Fatalf("a report with a different digest: %s", answer)
		}
		delete(g.users, "1")
		if answer := g.report(true); answer != store.OK {
			t.Fatalf("all: %s", answer)
		}
		want(t, s, "bob", false)
		want(t, s, "carol", true)
		g.number -= 2
		if answer := g.report(false); answer != store.Old {
			t.Fatalf("an older report: %s", answer)
		}
	})
}

func TestReport_AfterRedisWasEmptiedNumbersAreHigher(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.open("1", "bob")
		before := want(t, s, "bob", true)
		if err := r.FlushDB(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if answer := g.report(false); answer != store.ReportAll {
			t.Fatalf("after Redis was emptied: %s", answer)
		}
		g.report(true)
		if got := want(t, s, "bob", true); got.Number <= before.Number {
			t.Errorf("number %d after %d", got.Number, before.Number)
		}
	})
}

// Redis is emptied while bob is online, and bob disconnects before his gateway reports again. The clients of other
// users still show bob as online, so the change to offline must be published.
func TestReport_AUserWhoDisconnectsWhileRedisIsEmptyIsOfflineForEveryUser(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.open("1", "bob")
		g.open("2", "carol")
		before := want(t, s, "bob", true)
		if err := r.FlushDB(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if got := want(t, s, "bob", false); got.Number <= before.Number {
			t.Errorf("a new snapshot has the number %d, an earlier one had %d", got.Number, before.Number)
		}
		if answer := g.gone("1"); answer != store.ReportAll {
			t.Fatal(answer)
		}
		dirty, err := s.Dirty(t.Context())
		if err != nil || len(dirty) != 1 || dirty[0].User != "bob" || dirty[0].Online || dirty[0].Number <= before.Number {
			t.Fatalf("the unpublished changes are %+v, %v", dirty, err)
		}
		if answer := g.report(true); answer != store.OK {
			t.Fatal(answer)
		}
		want(t, s, "bob", false)
		want(t, s, "carol", true)
		if answer := g.gone("2"); answer != store.OK {
			t.Fatal(answer)
		}
		want(t, s, "carol", false)
	})
}

// Redis has stored that a connection belongs to bob, and a report names carol for the same connection. This cannot
// happen in a gateway that works correctly. The reported user must replace the stored user.
func TestReport_AConnectionOfAnotherUser(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.open("1", "bob")
		g.users["1"] = "carol"
		if answer := g.report(true); answer != store.OK {
			t.Fatal(answer)
		}
		want(t, s, "bob", false)
		want(t, s, "carol", true)
	})
}

// Two reports contain the same change, as after a lost answer. The change must count once.
func TestReport_SentTwiceCountsOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		g.open("1", "bob")
		if answer := g.open("1", "bob"); answer != store.OK {
			t.Fatal(answer)
		}
		g.gone("1")
		g.users["1"] = "bob"
		if answer := g.gone("1"); answer != store.OK {
			t.Fatal(answer)
		}
		want(t, s, "bob", false)
	})
}

// Many more users have changed than one step of a scan of Redis returns, and the Redis hash with the changes shrinks
// during the scan. Every change must be published.
func TestDirty_ReturnsAllOfManyChanges(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		const n = 5000
		for i := range n {
			g.users[fmt.Sprint("c", i)] = fmt.Sprint("user", i)
		}
		if answer := g.report(true); answer != store.OK {
			t.Fatal(answer)
		}
		published := map[string]bool{}
		for {
			dirty, err := s.Dirty(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(dirty) == 0 {
				break
			}
			for _, state := range dirty {
				published[state.User] = state.Online
			}
			if err := s.Published(t.Context(), dirty); err != nil {
				t.Fatal(err)
			}
		}
		if len(published) != n {
			t.Fatalf("%d of %d were published", len(published), n)
		}
	})
}

// Several instances apply reports concurrently while connections open and close. Afterwards, the counts of connections
// must be right.
func TestReport_FromManyAtOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				s := store.New(r, "t.", time.Minute) // each gateway reports to its own instance
				g := newGateway(t, s, fmt.Sprint("g", i))
				for n := range 20 {
					connection := fmt.Sprint(i, "-", n)
					g.users[connection] = "bob"
					changes := []*meshv1.ConnectionChange{{Connection: connection, User: "bob"}}
					if n == 0 {
						changes = nil // the first report contains all connections
					}
					g.report(n == 0, changes...)
					if n > 0 || i > 0 {
						g.gone(connection)
					}
				}
			})
		}
		all.Wait()
		s := store.New(r, "t.", time.Minute)
		first := want(t, s, "bob", true) // the one connection that is still open
		if answer, _, err := s.Report(t.Context(), &meshv1.ReportRequest{Gateway: "g0", Number: 1000, Ends: true}); err != nil ||
			answer != store.OK {
			t.Fatal(answer, err)
		}
		if got := want(t, s, "bob", false); got.Number <= first.Number {
			t.Errorf("number %d after %d", got.Number, first.Number)
		}
	})
}

// runOut calls Expire until the lease of a gateway has expired. Before each of these calls, it calls the given
// function.
func runOut(t *testing.T, s *store.Store, meanwhile func()) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		meanwhile()
		if n, err := s.Expire(t.Context()); err != nil || time.Now().After(end) {
			t.Fatal("no lease expired", err)
		} else if n > 0 {
			return
		}
	}
}

func TestExpire_EndsAGatewayWithoutReports(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", 300*time.Millisecond)
		dead, alive := newGateway(t, s, "dead"), newGateway(t, s, "alive")
		dead.report(true)
		alive.report(true)
		dead.open("1", "bob")
		alive.open("2", "carol")
		runOut(t, s, func() { alive.report(false) })
		want(t, s, "bob", false)
		want(t, s, "carol", true)
	})
}

func TestDirty_KeepsChangesUntilTheyArePublished(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		g.report(true)
		for i := range 20 {
			g.open(fmt.Sprint("c", i), fmt.Sprint("user", i))
		}
		dirty, err := s.Dirty(t.Context())
		if err != nil || len(dirty) != 20 {
			t.Fatalf("%d changes are unpublished, %v", len(dirty), err)
		}
		g.gone("c7") // changes the state of user7 while its earlier state is being published
		if err := s.Published(t.Context(), dirty); err != nil {
			t.Fatal(err)
		}
		left, err := s.Dirty(t.Context())
		if err != nil || len(left) != 1 || left[0].User != "user7" || left[0].Online {
			t.Fatalf("unpublished changes: %+v, %v; want that of user7", left, err)
		}
	})
}

// An earlier release stored connections without a session. Expire must end these connections too.
func TestExpire_EndsConnectionsStoredByAnEarlierVersion(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", 50*time.Millisecond)
		g := newGateway(t, s, "g")
		g.report(true)
		g.open("1", "bob")
		row := fmt.Sprint("bob ", store.Hash("1", "bob"))
		if err := r.HSet(t.Context(), "{t.presence}:gateway:g", "1", row).Err(); err != nil {
			t.Fatal(err)
		}
		runOut(t, s, func() {})
		want(t, s, "bob", false)
	})
}

// Expire ends a gateway with many connections in several short calls of a script. If the gateway reports between two
// calls, the answer must request all its connections. The state must be correct afterwards.
func TestExpire_OfManyConnectionsIsDoneInParts(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		const many = 1300
		s := store.New(r, "", 50*time.Millisecond)
		online := func() (n int64) {
			n, err := r.HLen(t.Context(), "{presence}:online").Result()
			require.NoError(t, err)
			return n
		}
		fill := func(name string) *gateway {
			g := newGateway(t, s, name)
			for i := range many {
				g.users[fmt.Sprint(name, i)] = fmt.Sprint("user", i)
			}
			require.Equal(t, store.OK, g.report(true))
			require.EqualValues(t, many, online())
			return g
		}
		expired := func(name string) {
			require.Eventually(t, func() bool {
				n, err := s.Expire(t.Context())
				require.NoError(t, err)
				return n == 1
			}, 20*time.Second, 10*time.Millisecond, name)
			require.Zero(t, online(), name)
			left, err := r.Keys(t.Context(), "{presence}:gateway:*").Result()
			require.NoError(t, err)
			require.Empty(t, left, name)
		}
		fill("late")
		expired("late")

		ending := fill("ending")
		ending.number++
		_, _, err := s.Report(t.Context(), &meshv1.ReportRequest{Gateway: "ending", Number: ending.number, Ends: true})
		require.NoError(t, err)
		require.Zero(t, online())

		// One call of the script ends the first 500 connections. Then the gateway reports again.
		back := fill("back")
		require.Eventually(t, func() bool {
			n, err := s.ExpireSome(t.Context(), "back")
			require.NoError(t, err)
			return n == 2
		}, 20*time.Second, 5*time.Millisecond)
		require.EqualValues(t, many-500, online())
		require.Equal(t, store.ReportAll, back.report(false))
		require.Equal(t, store.OK, back.report(true))
		require.EqualValues(t, many, online())
		require.Equal(t, store.OK, back.report(false))
		expired("back")

		// Connections that are missing in a full report must be dropped. If there are many such connections, this takes
		// several reports.
		other := newGateway(t, s, "other")
		for i := range 2*many + 200 {
			other.users[fmt.Sprint("c", i)] = fmt.Sprint("user", i)
		}
		require.Equal(t, store.OK, other.report(true))
		clear(other.users)
		other.users["c0"] = "user0"
		require.Equal(t, store.ReportAll, other.report(true))
		require.Equal(t, store.OK, other.report(true))
		require.EqualValues(t, 1, online())
	})
}

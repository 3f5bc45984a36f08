//go:build integration

package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

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

// gateway is a gateway as it reports itself.
type gateway struct {
	t      *testing.T
	s      *store.Store
	name   string
	number int64
	users  map[string]string
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
	answer, err := g.s.Report(g.t.Context(), r)
	if err != nil {
		g.t.Fatal(err)
	}
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

func TestReport_OnlineWhileAnyConnectionIsThere(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		a, b := newGateway(t, s, "a"), newGateway(t, s, "b")
		a.report(true)
		b.report(true)
		if got := want(t, s, "bob", false); got.Number != 1 {
			t.Errorf("who was never seen has the number %d", got.Number)
		}
		a.open("1", "bob")
		first := want(t, s, "bob", true)
		b.open("2", "bob")
		a.gone("1")
		if got := want(t, s, "bob", true); got.Number != first.Number {
			t.Errorf("the number changed from %d to %d, and nothing else", first.Number, got.Number)
		}
		b.gone("2")
		if got := want(t, s, "bob", false); got.Number <= first.Number {
			t.Errorf("offline has the number %d, online before it %d", got.Number, first.Number)
		}
		a.open("3", "bob")
		b.open("4", "carol")
		b.number++
		if answer, err := s.Report(t.Context(), &meshv1.ReportRequest{Gateway: "b", Number: b.number, Ends: true}); err != nil || answer != store.OK {
			t.Fatal(answer, err)
		}
		want(t, s, "carol", false)
		want(t, s, "bob", true)
	})
}

func TestReport_AsksForAllWhereWhatIsKnownDiffers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", time.Minute)
		g := newGateway(t, s, "g")
		if answer := g.open("1", "bob"); answer != store.Again {
			t.Fatalf("a gateway that is not known: %s", answer)
		}
		want(t, s, "bob", false)
		if answer := g.report(true); answer != store.OK {
			t.Fatalf("all: %s", answer)
		}
		want(t, s, "bob", true)
		g.users["2"] = "carol" // its report was lost
		if answer := g.report(false); answer != store.Again {
			t.Fatalf("another digest: %s", answer)
		}
		delete(g.users, "1")
		if answer := g.report(true); answer != store.OK {
			t.Fatalf("all: %s", answer)
		}
		want(t, s, "bob", false)
		want(t, s, "carol", true)
		g.number -= 2
		if answer := g.report(false); answer != store.Old {
			t.Fatalf("a report from before: %s", answer)
		}
	})
}

func TestReport_RedisEmptiedIsLearntAgainWithHigherNumbers(t *testing.T) {
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
		if answer := g.report(false); answer != store.Again {
			t.Fatalf("after Redis was emptied: %s", answer)
		}
		g.report(true)
		if got := want(t, s, "bob", true); got.Number <= before.Number {
			t.Errorf("number %d after %d", got.Number, before.Number)
		}
	})
}

func TestExpire_AGatewayThatIsNotHeardOfIsGone(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s := store.New(r, "t.", 300*time.Millisecond)
		dead, alive := newGateway(t, s, "dead"), newGateway(t, s, "alive")
		dead.report(true)
		alive.report(true)
		dead.open("1", "bob")
		alive.open("2", "carol")
		for ended := 0; ended == 0; {
			alive.report(false)
			n, err := s.Expire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ended += n
		}
		want(t, s, "bob", false)
		want(t, s, "carol", true)
	})
}

func TestDirty_EmptiedOnlyOfWhatIsPublished(t *testing.T) {
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
			t.Fatalf("%d are dirty, %v", len(dirty), err)
		}
		g.gone("c7") // while it is being published
		if err := s.Published(t.Context(), dirty); err != nil {
			t.Fatal(err)
		}
		left, err := s.Dirty(t.Context())
		if err != nil || len(left) != 1 || left[0].User != "user7" || left[0].Online {
			t.Fatalf("left: %+v, %v", left, err)
		}
	})
}

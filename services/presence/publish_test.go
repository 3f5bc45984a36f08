//go:build integration

package presence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// both runs a test on a real Redis and on the embedded Redis.
func both(t *testing.T, test func(t *testing.T, r *redis.Client)) {
	t.Helper()
	for name, settings := range map[string]func(testing.TB) backend.Redis{
		"real": meshtest.Redis, "embedded": meshtest.EmbeddedRedis} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t, settings(t)))
		})
	}
}

func open(t *testing.T, settings backend.Redis) *redis.Client {
	t.Helper()
	client, err := settings.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// topic is a stub of a broker, which can be made unavailable. It records the published events.
type topic struct {
	mu     sync.Mutex
	away   bool
	events []envelope.Event
}

var errUnavailable = errors.New("the broker is unavailable")

func (b *topic) Publish(_ string, messages ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return errUnavailable
	}
	for _, m := range messages {
		e, err := envelope.ReadEvent(m)
		if err != nil {
			return err
		}
		b.events = append(b.events, e)
	}
	return nil
}

func (*topic) Close() error { return nil }

func (b *topic) set(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

// newest returns, for each stream, the event with the highest number: the current state for a reader of the topic.
func (b *topic) newest() map[string]envelope.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := map[string]envelope.Event{}
	for _, e := range b.events {
		if e.Version > known[e.Stream].Version {
			known[e.Stream] = e
		}
	}
	return known
}

func (b *topic) is(user, kind string) func() bool {
	return func() bool { return b.newest()["presence:"+user].Type == kind }
}

func declared(t *testing.T) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dependencies records for each dependency whether it was last reported as unavailable.
type dependencies struct{ away sync.Map }

func (d *dependencies) report(dependency string, err error) { d.away.Store(dependency, err != nil) }

func (d *dependencies) is(dependency string) bool {
	away, known := d.away.Load(dependency)
	return known && away.(bool)
}

func newPublisher(t *testing.T, s *store.Store, b *topic, d *dependencies, lease time.Duration) *publisher {
	t.Helper()
	return &publisher{store: s, catalog: declared(t), bus: b, log: slog.New(slog.DiscardHandler), waiting: d.report,
		lease: lease, wake: make(chan struct{}, 1), heard: time.Now()}
}

func start(t *testing.T, p *publisher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// connected sends a full report of a gateway, which has exactly one connection of each given user.
func connected(t *testing.T, s *store.Store, gateway string, number int64, users ...string) {
	t.Helper()
	r := &meshv1.ReportRequest{Gateway: gateway, Number: number, All: true, Count: int64(len(users))}
	for _, user := range users {
		connection := gateway + "-" + user
		r.Digest += store.Hash(connection, user)
		r.Changes = append(r.Changes, &meshv1.ConnectionChange{Connection: connection, User: user})
	}
	if answer, _, err := s.Report(t.Context(), r); err != nil || answer != store.OK {
		t.Errorf("%s reports %v: %s %v", gateway, users, answer, err)
	}
}

func dirty(t *testing.T, s *store.Store) int {
	t.Helper()
	states, err := s.Dirty(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(states)
}

func TestPublish_AChangeIsPublishedAsItsEvent(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s, b := store.New(r, "t.", time.Minute), &topic{}
		p := newPublisher(t, s, b, &dependencies{}, time.Minute)
		connected(t, s, "g", 1, "bob")
		if err := p.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		connected(t, s, "g", 2)
		if err := p.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(b.events) != 2 {
			t.Fatalf("%+v", b.events)
		}
		for i, kind := range []string{"presence.came_online", "presence.went_offline"} {
			e := b.events[i]
			if e.Type != kind || e.Stream != "presence:bob" || e.Actor != "bob" || e.Source != "presence" ||
				e.Version == 0 || e.Position != catalog.Position(e.Version) || e.Before != 0 || e.Class != routingv1.Class_CLASS_EPHEMERAL ||
				len(e.Rooms) != 1 || e.Rooms[0] != "presence:bob" || time.Since(e.Time).Abs() > time.Minute {
				t.Errorf("%+v", e)
			}
			if key := e.Message().Metadata.Get(envelope.MetadataKey); key != "presence:bob" {
				t.Errorf("the key is %q", key)
			}
		}
		if b.events[1].Version <= b.events[0].Version {
			t.Errorf("number %d after %d", b.events[1].Version, b.events[0].Version)
		}
	})
}

// The broker is unavailable. A change must stay marked as unpublished in Redis until it is on the topic. If a user's
// state changes again during the outage, the newest state must be published.
func TestPublish_WaitsForTheBroker(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s, b, d := store.New(r, "t.", time.Minute), &topic{away: true}, &dependencies{}
		p := newPublisher(t, s, b, d, time.Minute)
		connected(t, s, "g", 1, "bob", "carol")
		if err := p.round(t.Context()); !errors.Is(err, errUnavailable) || !d.is("kafka") {
			t.Fatalf("%v, reported as unavailable: %v", err, d.is("kafka"))
		}
		if n := dirty(t, s); n != 2 {
			t.Fatalf("%d changes are unpublished", n)
		}
		connected(t, s, "g", 2, "carol")
		start(t, p)
		b.set(false)
		meshtest.Eventually(t, "bob is offline", b.is("bob", "presence.went_offline"))
		meshtest.Eventually(t, "carol is online", b.is("carol", "presence.came_online"))
		meshtest.Eventually(t, "all changes are published", func() bool { return dirty(t, s) == 0 && !d.is("kafka") })
	})
}

// A publisher is killed after it has published a change, but before it has recorded this in Redis. The next publisher
// must publish the change again with the same id.
func TestPublish_ACrashBeforeItIsRecordedRepeatsAChange(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		s, b := store.New(r, "t.", time.Minute), &topic{}
		connected(t, s, "g", 1, "bob")
		states, err := s.Dirty(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := newPublisher(t, s, b, &dependencies{}, time.Minute).publish(t.Context(), states); err != nil {
			t.Fatal(err)
		}
		if err := newPublisher(t, s, b, &dependencies{}, time.Minute).round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(b.events) != 2 || b.events[0].ID != b.events[1].ID || dirty(t, s) != 0 {
			t.Fatalf("%+v", b.events)
		}
	})
}

func TestRun_TheUsersOfAKilledGatewayGoOffline(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		const lease = 300 * time.Millisecond
		s, b := store.New(r, "t.", lease), &topic{}
		p := newPublisher(t, s, b, &dependencies{}, lease)
		connected(t, s, "g", 1, "bob")
		start(t, p)
		meshtest.Eventually(t, "bob is online", b.is("bob", "presence.came_online"))
		meshtest.Eventually(t, "bob is offline", b.is("bob", "presence.went_offline"))
	})
}

// Leases of gateways expire while presence or Redis is down, because gateways cannot report. Afterwards, gateways must
// get time to report before presence removes their connections.
func TestRound_GatewaysMayReportBeforeTheirLeasesEnd(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		const lease = time.Hour
		s, b := store.New(r, "t.", time.Millisecond), &topic{} // each lease expires at once
		connected(t, s, "g", 1, "bob")
		p := newPublisher(t, s, b, &dependencies{}, lease)
		time.Sleep(2 * time.Millisecond)
		if err := p.round(t.Context()); err != nil || !b.is("bob", "presence.came_online")() {
			t.Fatalf("directly after the start: %v %+v", err, b.events)
		}
		p.heard = time.Now().Add(-2 * lease)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.round(ended); err == nil { // with an ended context, every call of Redis fails, as in an outage
			t.Fatal("round returned no error while Redis was unreachable")
		}
		if err := p.round(t.Context()); err != nil || !b.is("bob", "presence.came_online")() {
			t.Fatalf("after an outage of Redis: %v %+v", err, b.events)
		}
		p.heard = time.Now().Add(-2 * lease)
		if err := p.round(t.Context()); err != nil || !b.is("bob", "presence.went_offline")() {
			t.Fatalf("after a whole lease without a report: %v %+v", err, b.events)
		}
	})
}

// Several instances apply reports, end leases and publish concurrently. Afterwards, for each user, the event with the
// highest number must have the current state.
func TestRun_SeveralInstancesAtOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, r *redis.Client) {
		b := &topic{}
		var reports sync.WaitGroup
		for i := range 3 {
			s := store.New(r, "t.", time.Minute)
			p := newPublisher(t, s, b, &dependencies{}, time.Minute)
			start(t, p)
			reports.Go(func() {
				for n := range int64(40) {
					var users []string
					for u := range int64(8) {
						if (n+u+int64(i))%3 == 0 {
							users = append(users, fmt.Sprint("user", u))
						}
					}
					connected(t, s, fmt.Sprint("g", i), n+1, users...)
					p.soon()
				}
			})
		}
		reports.Wait()
		s := store.New(r, "t.", time.Minute)
		meshtest.Eventually(t, "all changes are published", func() bool { return dirty(t, s) == 0 })
		known := b.newest()
		if len(known) != 8 {
			t.Fatalf("events of %d users", len(known))
		}
		for u := range 8 {
			user := fmt.Sprint("user", u)
			states, err := s.States(t.Context(), []string{user})
			if err != nil {
				t.Fatal(err)
			}
			e := known["presence:"+user]
			if e.Version != catalog.Version(states[0].Number) || (e.Type == "presence.came_online") != states[0].Online {
				t.Errorf("the newest event is %s %d, but the state is %+v", e.Type, e.Version, states[0])
			}
		}
	})
}

// Redis is killed and restarted with its data. The publisher must report the outage and continue afterwards.
func TestRun_ContinuesWhenRedisIsBack(t *testing.T) {
	t.Parallel()
	server := meshtest.NewRedisServer(t)
	r := open(t, server.Settings())
	s, b, d := store.New(r, "t.", time.Minute), &topic{}, &dependencies{}
	p := newPublisher(t, s, b, d, time.Minute)
	start(t, p)
	connected(t, s, "g", 1, "bob")
	meshtest.Eventually(t, "bob is online", b.is("bob", "presence.came_online"))
	server.Kill()
	meshtest.Eventually(t, "Redis is reported as unavailable", func() bool { return d.is("redis") })
	server.Start()
	meshtest.Eventually(t, "Redis is reported as available", func() bool { return !d.is("redis") })
	connected(t, s, "g", 2, "carol")
	meshtest.Eventually(t, "bob is offline", b.is("bob", "presence.went_offline"))
	meshtest.Eventually(t, "carol is online", b.is("carol", "presence.came_online"))
}

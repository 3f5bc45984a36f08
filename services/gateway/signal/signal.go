// Package signal relays signals, such as "is typing", to the connected members of a room. Redis Pub/Sub carries them
// between gateways. A signal is not stored, is not sent again to clients that resume, and is dropped first under load.
// Signals are declared in proto/.
package signal

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/quota"
)

// Options of Signals.
type Options struct {
	Catalog *catalog.Catalog
	Hub     *hub.Hub
	// Redis carries signals between gateways. Signals are refused without it, and while it does not respond.
	Redis *redis.Client
	// Prefix is the prefix of the channels' names, so that several installations can share a Redis server.
	Prefix  string
	Metrics *Metrics
	Guard   *guard.Guard
	Log     *slog.Logger
}

// Signals relays the signals of one gateway.
type Signals struct {
	options   Options
	gateway   string
	available atomic.Bool // whether Redis responds
	wake      chan struct{}

	mu       sync.Mutex
	buckets  map[bucketOf]*quota.Bucket
	outgoing [channels][]*meshv1.Signal
	waiting  int
}

// bucketOf is the key of a bucket: a type of signal, and the connection or user that sends it.
type bucketOf struct{ who, signal string }

// burst is the number of signals that a sender may send at once, divided by the signal's declared rate per second. With
// a rate of 2 per second, a sender may send 10 signals at once.
const burst = 5

// maxWaiting is the maximum number of signals that wait to be published.
const maxWaiting = 4096

// New returns the Signals of a gateway. Signals are refused until Run has reached Redis.
func New(o Options) *Signals {
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Signals{options: o, gateway: uuid.NewString(), wake: make(chan struct{}, 1),
		buckets: map[bucketOf]*quota.Bucket{}}
}

// Send relays a signal of a connection to all other connections whose users are members of the signal's room, including
// the other connections of the same user. The error is a refusal.
func (s *Signals) Send(c *hub.Conn, declared *catalog.Signal, data frame.Data) error {
	if len(data.Bytes) > declared.Bytes {
		return refusal.New(refusal.InvalidField, "data of %s may have at most %d bytes", declared.Name, declared.Bytes)
	}
	m := declared.Type.New().Interface()
	if err := data.Read(m); err != nil {
		return err
	}
	if err := declared.Check(m); err != nil {
		return err
	}
	room, ok := declared.Room(m, c.User)
	if !ok {
		return refusal.New(refusal.InvalidField, "%s: the signal does not name its room", declared.Name)
	}
	if !s.options.Hub.Shard(declared.Owner).IsMember(c, room) {
		return refusal.New(refusal.NotAMember, "you are not a member of %s", room)
	}
	if !s.available.Load() {
		return refusal.New(refusal.Unavailable, "signals are not relayed at the moment")
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return refusal.New(refusal.InvalidField, "%s: %v", declared.Name, err)
	}
	if refused := s.enqueue(c, declared, &meshv1.Signal{Name: declared.Name, Room: room, Actor: c.User, Body: body}); refused != nil {
		return refused
	}
	s.options.Metrics.Sent.Inc()
	s.deliver(declared, room, c.User, c.ID, m)
	return nil
}

// enqueue adds a signal to the signals that wait to be published. It returns a refusal if the connection or its user
// has used up the declared rate, or if maxWaiting signals wait already.
func (s *Signals) enqueue(c *hub.Conn, declared *catalog.Signal, signal *meshv1.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.take(c.ID, declared) || !s.take("user:"+c.User, declared) {
		return refusal.New(refusal.TooManyWaiting, "%s may be sent at most %d times a second", declared.Name, declared.Rate)
	}
	if s.waiting >= maxWaiting {
		return refusal.New(refusal.Unavailable, "too many signals wait to be relayed")
	}
	channel := channelOf(signal.Room)
	s.outgoing[channel] = append(s.outgoing[channel], signal)
	s.waiting++
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

func (s *Signals) take(who string, declared *catalog.Signal) bool {
	of := bucketOf{who, declared.Name}
	b := s.buckets[of]
	if b == nil {
		full := quota.NewBucket(declared.Rate, burst*declared.Rate)
		b = &full
		s.buckets[of] = b
	}
	return b.Take(time.Now(), 1)
}

// forget removes full buckets every minute, so that the buckets of senders that have left do not accumulate.
func (s *Signals) forget(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.removeFull(now)
		case <-ctx.Done():
			return nil
		}
	}
}

// removeFull removes the buckets that are full. A sender whose bucket was removed gets a new bucket, which is full too.
func (s *Signals) removeFull(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.buckets, func(_ bucketOf, b *quota.Bucket) bool { return b.IsFull(now) })
}

// deliver queues a signal for the connections of this gateway whose users are members of the signal's room. It leaves
// out the sender's connection, whose id is the parameter except.
func (s *Signals) deliver(declared *catalog.Signal, room, actor, except string, m proto.Message) {
	shared := &frame.Shared{Frame: frame.Signal(declared.Name, room, actor, m)}
	if _, err := shared.Encode(frame.JSON); err != nil {
		s.options.Log.Error("signal: a signal cannot be encoded", "signal", declared.Name, "error", err)
		return
	}
	key := room + "\x00" + actor + "\x00" + declared.Name // a newer signal with this key replaces one that waits
	n := s.options.Hub.Shard(declared.Owner).Signal(room, except, key, shared)
	s.options.Metrics.Delivered.Add(float64(n))
}

// Run relays signals between gateways until the context ends. If Options.Redis is nil, it only waits.
func (s *Signals) Run(ctx context.Context) error {
	if s.options.Redis == nil {
		<-ctx.Done()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.receive(ctx); return nil })
	g.Go(func() error { s.publish(ctx); return nil })
	g.Go(func() error { return s.forget(ctx) })
	return g.Wait()
}

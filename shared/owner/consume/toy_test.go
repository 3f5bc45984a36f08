//go:build integration

package consume_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	notificationv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner/consume"
)

const topic = "chat-events"

// source stands in for an owner such as "chat". It has a log in memory, and a test publishes the log's records in any
// order.
type source struct {
	meshv1connect.OwnerServiceClient
	w           *world
	name, topic string

	mu          sync.Mutex
	log         []envelope.Event          // the field Before of these events is not set
	missing     map[catalog.Position]bool // positions that a restored log has lost
	head        catalog.Position
	versions    map[string]catalog.Version
	chain       map[int32]catalog.Position // position of the newest record, by partition
	partitions  int32
	epoch       int32
	incarnation string

	reads atomic.Int64 // requests for pages of a topic or stream
	asked atomic.Int64 // requests for pages while the owner hangs
	hangs atomic.Bool  // whether the owner does not answer
}

// append writes one event for each text in the parameter bodies into the log, in the stream of the conversation.
func (s *source) append(conversation string, bodies ...string) (events []envelope.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, body := range bodies {
		s.head++
		stream := "conversation:" + conversation
		s.versions[stream]++
		raw, _ := proto.Marshal(&chatv1.MessageSent{ConversationId: conversation, MessageId: "m", Body: body})
		e := envelope.Event{ID: fmt.Sprintf("%s-%d-%s", s.name, s.head, s.incarnation), Type: "chat.message_sent", Source: s.name,
			Stream: stream, Version: s.versions[stream], Position: s.head, Time: time.Now().UTC(), Actor: "ann", Body: raw,
			Class: routingv1.Class_CLASS_DURABLE, Incarnation: s.incarnation}
		s.log = append(s.log, e)
		events = append(events, e)
	}
	return events
}

// chained sets the fields Before, Epoch and Partitions of events as the relay does. Before is the position of the
// previous record of the event's partition.
func (s *source) chained(events ...envelope.Event) []envelope.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range events {
		e := &events[i]
		n := envelope.Partition(e.Stream, s.partitions)
		e.Before, s.chain[n] = s.chain[n], e.Position
		e.Epoch, e.Partitions = s.epoch, s.partitions
	}
	return events
}

// publish publishes events as they are, each in the partition of its stream.
func (s *source) publish(events ...envelope.Event) {
	s.w.t.Helper()
	var all []*message.Message
	for _, e := range events {
		count := e.Partitions
		if count == 0 {
			count = s.partitions
		}
		all = append(all, addressed(e, envelope.Partition(e.Stream, count)))
	}
	require.NoError(s.w.t, s.w.publisher.Publish(s.topic, all...))
}

func addressed(e envelope.Event, partition int32) *message.Message {
	m := e.Message()
	m.Metadata.Set(bus.MetadataPartition, strconv.Itoa(int(partition)))
	return m
}

// say appends one event for each text in the parameter bodies to the log, and publishes the events.
func (s *source) say(conversation string, bodies ...string) []envelope.Event {
	s.w.t.Helper()
	events := s.chained(s.append(conversation, bodies...)...)
	s.publish(events...)
	return events
}

// publishPosition publishes, in each partition, a record that contains the log's last position.
func (s *source) publishPosition() {
	s.w.t.Helper()
	s.publishPositionWith(func(*envelope.Event) {})
}

func (s *source) publishPositionWith(change func(*envelope.Event)) {
	s.w.t.Helper()
	s.mu.Lock()
	var all []*message.Message
	for n := range s.partitions {
		e := envelope.Position(s.name, s.head, s.chain[n])
		e.Epoch, e.Partitions, e.Incarnation = s.epoch, s.partitions, s.incarnation
		s.chain[n] = s.head
		change(&e)
		all = append(all, addressed(e, n))
	}
	s.mu.Unlock()
	require.NoError(s.w.t, s.w.publisher.Publish(s.topic, all...))
}

// grow begins an epoch with another number of partitions, and publishes the epoch's fence in all of them. The topic
// must have the partitions already.
func (s *source) grow(partitions int32) {
	s.w.t.Helper()
	s.mu.Lock()
	s.partitions, s.epoch = partitions, s.epoch+1
	s.mu.Unlock()
	s.publishPositionWith(func(e *envelope.Event) { e.Fence = true })
}

func (s *source) ReadLog(ctx context.Context, r *connect.Request[meshv1.ReadLogRequest]) (
	*connect.Response[meshv1.ReadLogResponse], error) {
	if s.hangs.Load() {
		s.asked.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ask := r.Msg
	if ask.GetTopic() != "" || ask.GetStream() != "" {
		s.reads.Add(1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	head := int64(s.head)
	page := &meshv1.ReadLogResponse{Head: head, Complete: max(head, ask.GetAfter()), Incarnation: s.incarnation}
	if ask.GetUntil() > 0 {
		page.Complete = max(min(head, ask.GetUntil()), ask.GetAfter())
	}
	limit := int(ask.GetLimit())
	if limit == 0 {
		limit = 500
	}
	for _, e := range s.log {
		switch {
		case e.Position <= catalog.Position(ask.GetAfter()) || ask.GetUntil() > 0 && e.Position > catalog.Position(ask.GetUntil()) || s.missing[e.Position]:
			continue
		case ask.GetStream() != "" && e.Stream != ask.GetStream():
			continue
		case ask.GetPartitions() > 0 && envelope.Partition(e.Stream, ask.GetPartitions()) != ask.GetPartition():
			continue
		}
		page.Records = append(page.Records, e.Record(s.topic))
		if len(page.Records) == limit {
			page.Complete = int64(e.Position)
			break
		}
	}
	return connect.NewResponse(page), nil
}

// world is the environment of a test: a database, a broker, and a source with its topic.
type world struct {
	t         *testing.T
	pool      *pgxpool.Pool // the test's own connections
	services  *pgxpool.Pool // connections of the instances
	sent      statements    // statements that the instances have sent
	kafka     backend.Kafka
	catalog   *catalog.Catalog
	publisher *bus.Publisher
	source    *source
	fails     atomic.Bool // whether messages with the texts "choke" and "spoil" fail
	reacted   atomic.Int64
	since     consume.Since
}

func newWorld(t *testing.T) *world {
	t.Helper()
	declared, err := catalog.Load()
	require.NoError(t, err)
	w := &world{t: t, catalog: declared, kafka: meshtest.EmbeddedKafka(t), since: consume.FromStart()}
	_, err = w.kafka.EnsureTopics(t.Context(), declared.Topics(""))
	require.NoError(t, err)
	w.pool, err = backend.Postgres{URL: meshtest.Postgres(t), PoolMax: 5}.Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(w.pool.Close)
	traced := w.pool.Config()
	traced.ConnConfig.Tracer = &w.sent
	w.services, err = pgxpool.NewWithConfig(t.Context(), traced)
	require.NoError(t, err)
	t.Cleanup(w.services.Close)
	w.publisher, err = bus.NewPublisher(w.kafka, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.publisher.Close() })
	w.source = w.newSource("chat", topic)
	w.fails.Store(true)
	return w
}

// newSource returns a source with an empty log. The source has the name of an owner, and publishes on one topic.
func (w *world) newSource(name, topic string) *source {
	return &source{w: w, name: name, topic: topic, versions: map[string]catalog.Version{}, chain: map[int32]catalog.Position{}, partitions: 3,
		epoch: 1, incarnation: "first", missing: map[catalog.Position]bool{}}
}

// statements counts the statements that are sent to Postgres.
type statements struct{ transactions, others atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	s.count(d.SQL)
	return ctx
}

func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (*statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (s *statements) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	s.count(d.SQL)
}

func (*statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (s *statements) count(sql string) {
	if strings.HasPrefix(strings.ToUpper(sql), "BEGIN") {
		s.transactions.Add(1)
	} else {
		s.others.Add(1)
	}
}

// react is the consumer's reaction: a message raises a notification for "bob". A message with the text "many n" raises
// one for each of n other recipients instead, and the text "quiet" raises none. While w.fails is true, the reaction
// panics at the text "choke", and the notification about the text "spoil" cannot be stored.
func (w *world) react(e envelope.Event, event proto.Message) (effects []consume.Effect) {
	w.reacted.Add(1)
	body := event.(*chatv1.MessageSent).GetBody()
	recipients := []string{"bob"}
	switch verb, number, _ := strings.Cut(body, " "); verb {
	case "quiet":
		return nil
	case "many":
		n, _ := strconv.Atoi(number)
		recipients = nil
		for i := range n {
			recipients = append(recipients, fmt.Sprint("r", i))
		}
	case "choke":
		if w.fails.Load() {
			panic("requested by the test")
		}
	}
	for _, r := range recipients {
		m := &notificationv1.Raised{NotificationId: e.ID, RecipientId: r, By: e.Actor, AboutStream: e.Stream,
			AboutVersion: int64(e.Version)}
		f := consume.Effect{Stream: "notifications:" + r, Events: []proto.Message{m}}
		if body == "spoil" && w.fails.Load() {
			m.By, f.Actor = "b\x00b", "b\x00b" // Postgres cannot store a NUL
		}
		effects = append(effects, f)
	}
	return effects
}

// instance is one instance of the service "notification", which consumes the topic.
type instance struct {
	*world
	log      *eventlog.Log
	consumer *consume.Consumer
	waiting  sync.Map    // the last error that Options.Waiting got, by dependency; nil: available again
	lost     atomic.Bool // whether acknowledgments are lost, as if the instance were killed after a commit
	stop     func()
	kill     func() // ends the instance without committing running transactions
}

func (w *world) start() *instance {
	w.t.Helper()
	return w.startWith(func(*consume.Options) {})
}

func (w *world) startWith(change func(*consume.Options)) *instance {
	w.t.Helper()
	i := &instance{world: w}
	var err error
	i.log, err = eventlog.Open(w.t.Context(), eventlog.Options{Owner: "notification", Pool: w.services, Catalog: w.catalog,
		Log: slog.New(slog.DiscardHandler)})
	require.NoError(w.t, err)
	work, stopWork := context.WithCancel(context.Background())
	o := consume.Options{Source: "chat", Topic: topic, Since: w.since, React: w.react, Partitions: 3, Log: i.log,
		Catalog: w.catalog, Owner: w.source, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
		Waiting: func(dependency string, err error) { i.waiting.Store(dependency, err) }}
	change(&o)
	i.consumer, err = consume.New(work, o)
	require.NoError(w.t, err)
	router, err := bus.NewRouter(bus.RouterOptions{Service: "notification", Publisher: w.publisher,
		DeadLetterTopic: catalog.DeadLetterTopic("notification")})
	require.NoError(w.t, err)
	subscriber, err := bus.NewSubscriber(w.kafka, bus.SubscriberOptions{Group: "notification", InOrder: true,
		Window: consume.Window, Drain: 3 * time.Second})
	require.NoError(w.t, err)
	router.AddConsumerHandler("notification", o.Topic, subscriber, func(m *message.Message) error {
		err := i.consumer.Handle(m)
		if i.lost.Load() {
			<-m.Context().Done()
			return errors.New("killed")
		}
		return err
	})
	var running sync.WaitGroup
	running.Go(func() { _ = i.log.Run(work) })
	running.Go(func() { _ = router.Run(work) })
	<-router.Running()
	i.stop = sync.OnceFunc(func() {
		_ = router.Close()
		stopWork()
		i.consumer.Wait()
		running.Wait()
	})
	i.kill = func() {
		stopWork()
		i.stop()
	}
	w.t.Cleanup(i.stop)
	return i
}

// raised returns, for each notification of a recipient about a message of a conversation, the version of that message.
// The versions are in the order of the notifications.
func (w *world) raised(recipient, conversation string) (versions []catalog.Version) {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), "SELECT body FROM notification.events WHERE stream = $1 ORDER BY position",
		"notifications:"+recipient)
	require.NoError(w.t, err)
	defer rows.Close()
	for rows.Next() {
		var body []byte
		require.NoError(w.t, rows.Scan(&body))
		m := &notificationv1.Raised{}
		require.NoError(w.t, proto.Unmarshal(body, m))
		if m.AboutStream == "conversation:"+conversation {
			versions = append(versions, catalog.Version(m.AboutVersion))
		}
	}
	require.NoError(w.t, rows.Err())
	return versions
}

func (w *world) awaitRaised(conversation string, want ...catalog.Version) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("notifications about versions %v of %s", want, conversation), func() bool {
		return slices.Equal(w.raised("bob", conversation), want)
	})
}

// stored publishes the position of the source's log, and waits until the checkpoint of every partition has reached it.
func (w *world) stored() {
	w.t.Helper()
	w.source.awaitStored()
}

func (s *source) awaitStored() {
	s.w.t.Helper()
	s.publishPosition()
	s.w.eventually("every partition is stored", func() bool {
		return s.w.number(`SELECT count(*) FROM notification.checkpoints
			WHERE source = $1 AND position >= $2 AND index = 0`, s.name, s.head) == int64(s.partitions)
	})
}

func (w *world) number(query string, args ...any) (n int64) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(w.t.Context(), query, args...).Scan(&n))
	return n
}

func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	meshtest.Eventually(w.t, what, is)
}

// conversations returns n conversations that are spread over all partitions.
func conversations(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint("c", i))
	}
	return all
}

// upTo returns the versions from 1 to n.
func upTo(n catalog.Version) (all []catalog.Version) {
	for v := range n {
		all = append(all, v+1)
	}
	return all
}

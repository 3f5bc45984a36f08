package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// route runs a router with one handler for "topic", until the test ends or stop is called.
func route(t testing.TB, k backend.Kafka, o bus.RouterOptions, handle message.NoPublishHandlerFunc) (stop func()) {
	t.Helper()
	o.Service = "test"
	if o.Backoff == 0 {
		o.Backoff = time.Millisecond
	}
	if o.Publisher == nil {
		o.Publisher = publisher(t, k)
	}
	router, err := bus.NewRouter(o)
	require.NoError(t, err)
	s, err := bus.NewSubscriber(k, bus.SubscriberOptions{Group: "test", Backoff: time.Millisecond})
	require.NoError(t, err)
	router.AddConsumerHandler("handler", "topic", s, handle)
	stopped, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- bus.RunRouter(context.Background(), stopped, router) }()
	stop = sync.OnceFunc(func() {
		close(stopped)
		require.NoError(t, <-done)
	})
	t.Cleanup(stop)
	<-router.Running()
	return stop
}

// letters subscribes to the topic "dead", which contains the dead letters.
func letters(t testing.TB, k backend.Kafka) <-chan *message.Message {
	t.Helper()
	return subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "dead")
}

func prepare(t testing.TB, k backend.Kafka) {
	t.Helper()
	createTopic(t, k, "topic", 3)
	createTopic(t, k, "dead", 1)
}

func TestRouter_BytesThatCannotBeDecodedReachTheDeadLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		prepare(t, k)
		sent, err := plain(t, k).ProduceSync(t.Context(), &kgo.Record{Topic: k.Topic("topic"), Key: []byte("k\xff"),
			Value: []byte("\x00\xfe\xff"), Headers: []kgo.RecordHeader{{Key: "own", Value: []byte{0xff}},
				{Key: "partition", Value: []byte("77")}}}).First()
		require.NoError(t, err)
		partition, offset := sent.Partition, sent.Offset
		var hooked atomic.Int64
		route(t, k, bus.RouterOptions{DeadLetterTopic: "dead",
			OnDeadLetter: func(_ context.Context, m *message.Message, cause error) error {
				hooked.Add(1)
				if string(m.Payload) != "\x00\xfe\xff" || cause.Error() != "these bytes mean nothing" {
					return fmt.Errorf("unexpected %q %w", m.Payload, cause)
				}
				return nil
			}}, func(m *message.Message) error { return retry.Permanent(errors.New("these bytes mean nothing")) })
		letter := receive(t, letters(t, k))
		require.EqualValues(t, 1, hooked.Load())
		require.Equal(t, "\x00\xfe\xff", string(letter.Payload))
		at := letter.Metadata.Get(bus.DeadLetterTime)
		_, err = time.Parse(time.RFC3339Nano, at)
		require.NoError(t, err)
		require.Equal(t, message.Metadata{
			"own": "\xff", bus.MetadataKey: "k\xff", bus.DeadLetterTopic: "topic",
			bus.DeadLetterPartition: strconv.Itoa(int(partition)), bus.DeadLetterOffset: strconv.FormatInt(offset, 10),
			bus.DeadLetterKey: "k\xff", bus.DeadLetterError: "these bytes mean nothing", bus.DeadLetterTime: at,
			bus.DeadLetterHandler: "handler", bus.DeadLetterService: "test",
		}, letter.Metadata)
	})
}

func TestRouter_APanicBecomesADeadLetterAfterBoundedRetries(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	publish(t, publisher(t, k), "topic", keyed("a", "bad"), keyed("a", "good"))
	var mu sync.Mutex
	handled := map[string]int{}
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead", Retries: 2}, func(m *message.Message) error {
		mu.Lock()
		handled[string(m.Payload)]++
		mu.Unlock()
		if string(m.Payload) == "bad" {
			panic("no way")
		}
		return nil
	})
	dead := letters(t, k)
	letter := receive(t, dead)
	require.Equal(t, "a/bad", letter.UUID)
	require.Equal(t, "panic: no way", letter.Metadata.Get(bus.DeadLetterError))
	letter.Ack()
	meshtest.Eventually(t, "the next message of the key is handled", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return handled["good"] == 1
	})
	nothing(t, dead)
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, map[string]int{"bad": 3, "good": 1}, handled)
}

func TestRouter_WaitsForADependencyWithoutDeadLetters(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	p := publisher(t, k)
	publish(t, p, "topic", numbered("a", 0, 5)...)
	publish(t, p, "topic", numbered("b", 0, 5)...)
	var away atomic.Bool
	away.Store(true)
	var mu sync.Mutex
	var reports []string
	var order []string
	tries := 0
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead", Retries: 1,
		Waiting: func(dependency string, err error) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, fmt.Sprint(dependency, " ", err))
		}}, func(m *message.Message) error {
		mu.Lock()
		defer mu.Unlock()
		tries++
		if away.Load() {
			return fmt.Errorf("append: %w", retry.Unavailable("postgres", errors.New("connection refused")))
		}
		order = append(order, m.UUID)
		return nil
	})
	meshtest.Eventually(t, "many tries", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return tries > 20
	})
	away.Store(false)
	meshtest.Eventually(t, "all messages are handled", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(order) == 10
	})
	nothing(t, letters(t, k))
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"postgres append: postgres is unavailable: connection refused", "postgres <nil>"}, reports)
	for _, key := range []string{"a", "b"} {
		var own []string
		for _, id := range order {
			if id[:1] == key {
				own = append(own, id)
			}
		}
		require.True(t, slices.IsSorted(own), own)
	}
}

func TestRouter_StopsWhileItsMessagesWait(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	publish(t, publisher(t, k), "topic", keyed("a", "0"))
	var tries atomic.Int64
	var waiting sync.Map
	var logged bytes.Buffer // written only by slog's handler, which has a lock, and read after the stop
	stop := route(t, k, bus.RouterOptions{DeadLetterTopic: "dead", Backoff: 10 * time.Second,
		Log:     slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Waiting: func(dependency string, err error) { waiting.Store(dependency, err != nil) }},
		func(*message.Message) error {
			tries.Add(1)
			return retry.Unavailable("postgres", errors.New("connection refused"))
		})
	meshtest.Eventually(t, "it waits", func() bool { return tries.Load() == 1 })
	begun := time.Now()
	stop()
	require.Less(t, time.Since(begun), 5*time.Second)
	still, _ := waiting.Load("postgres")
	require.Equal(t, false, still, "no message waits any more")
	require.Contains(t, logged.String(), "the message will be delivered again")
	require.NotContains(t, logged.String(), "level=ERROR", "a stop is not an error")
	// A second router gets the message that the first one has not finished.
	handled := make(chan string, 1)
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead"}, func(m *message.Message) error {
		handled <- m.UUID
		return nil
	})
	require.Equal(t, "a/0", <-handled)
	nothing(t, letters(t, k))
}

// subscribing is a subscriber whose method Subscribe is a function of the test.
type subscribing func(ctx context.Context) error

func (s subscribing) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	return nil, s(ctx)
}

func (subscribing) Close() error { return nil }

// A router ends before all its handlers are started: it is stopped while a handler subscribes, or the handler cannot
// subscribe. RunRouter must return although CloseTimeout is an hour.
func TestRunRouter_EndsBeforeItsHandlersAreStarted(t *testing.T) {
	t.Parallel()
	for _, stopFirst := range []bool{true, false} {
		subscribes, stop := make(chan struct{}), make(chan struct{})
		router, err := bus.NewRouter(bus.RouterOptions{Service: "test", CloseTimeout: time.Hour})
		require.NoError(t, err)
		router.AddConsumerHandler("handler", "topic", subscribing(func(ctx context.Context) error {
			close(subscribes)
			<-ctx.Done()
			return ctx.Err()
		}), func(*message.Message) error { return nil })
		if stopFirst {
			close(stop)
		}
		ended := make(chan error, 1)
		go func() { ended <- bus.RunRouter(t.Context(), stop, router) }()
		if !stopFirst {
			<-subscribes
			close(stop)
		}
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(30 * time.Second):
			t.Fatal("RunRouter does not return after the stop")
		}
	}
	router, err := bus.NewRouter(bus.RouterOptions{Service: "test", CloseTimeout: time.Hour})
	require.NoError(t, err)
	denied := errors.New("access denied")
	router.AddConsumerHandler("handler", "topic", subscribing(func(context.Context) error { return denied }),
		func(*message.Message) error { return nil })
	require.ErrorContains(t, bus.RunRouter(t.Context(), nil, router), "access denied")
}

// delivering is a subscriber that delivers one message, and closes the channel of messages when its context ends.
type delivering struct{}

func (delivering) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	messages := make(chan *message.Message, 1)
	messages <- message.NewMessage("1", nil)
	context.AfterFunc(ctx, func() { close(messages) })
	return messages, nil
}

func (delivering) Close() error { return nil }

func TestRunRouter_ReportsAHandlerThatDoesNotFinish(t *testing.T) {
	t.Parallel()
	router, err := bus.NewRouter(bus.RouterOptions{Service: "test", CloseTimeout: time.Millisecond})
	require.NoError(t, err)
	handling, release, stop := make(chan struct{}), make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	router.AddConsumerHandler("handler", "topic", delivering{}, func(*message.Message) error {
		close(handling)
		<-release
		return nil
	})
	ended := make(chan error, 1)
	go func() { ended <- bus.RunRouter(t.Context(), stop, router) }()
	<-handling
	close(stop)
	require.ErrorContains(t, <-ended, "timeout")
}

func TestDeadLetter_WaitsForItsDependencies(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	publish(t, publisher(t, k), "topic", keyed("a", "0"))
	var hooked, published atomic.Int64
	flaky := flakyPublisher{Publisher: publisher(t, k), fails: 3, calls: &published}
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead", Publisher: flaky, Retries: -1,
		OnDeadLetter: func(context.Context, *message.Message, error) error {
			if hooked.Add(1) < 6 {
				return retry.Unavailable("postgres", errors.New("gone"))
			}
			return nil
		}}, func(*message.Message) error { return errors.New("wrong") })
	letter := receive(t, letters(t, k))
	require.Equal(t, "wrong", letter.Metadata.Get(bus.DeadLetterError))
	require.EqualValues(t, 6, hooked.Load())
	require.EqualValues(t, 4, published.Load())
}

type flakyPublisher struct {
	message.Publisher
	fails int64
	calls *atomic.Int64
}

func (p flakyPublisher) Publish(topic string, messages ...*message.Message) error {
	if p.calls.Add(1) <= p.fails {
		return retry.Unavailable("kafka", errors.New("gone"))
	}
	return p.Publisher.Publish(topic, messages...)
}

func TestDeadLetter_IsPublishedWhenItsHookFails(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"))
	var calls atomic.Int64
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead", Retries: 2,
		OnDeadLetter: func(context.Context, *message.Message, error) error {
			calls.Add(1)
			panic("the hook is broken")
		}}, func(m *message.Message) error { return retry.Permanent(errors.New("wrong")) })
	dead := letters(t, k)
	for n := range 2 {
		m := receive(t, dead)
		require.Equal(t, "a/"+strconv.Itoa(n), m.UUID)
		m.Ack()
	}
	require.EqualValues(t, 2*3, calls.Load())
}

func TestDeadLetter_LeavesOutAPayloadThatIsTooLarge(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	// The message is almost as large as the topic allows. The headers of a dead letter make it too large.
	large := keyed("a", "0")
	large.Payload = make([]byte, 1<<20-140)
	publish(t, publisher(t, k), "topic", large)
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead"}, func(*message.Message) error {
		return retry.Permanent(errors.New("wrong"))
	})
	letter := receive(t, letters(t, k))
	require.Empty(t, letter.Payload)
	require.Equal(t, fmt.Sprintf("left out, %d bytes", len(large.Payload)), letter.Metadata.Get(bus.DeadLetterPayload))
	require.Equal(t, "0", letter.Metadata.Get(bus.DeadLetterOffset))
}

func TestRouter_WithoutDeadLettersDropsFailedMessages(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"))
	handled := make(chan string, 10)
	route(t, k, bus.RouterOptions{Retries: -1}, func(m *message.Message) error {
		handled <- m.UUID
		return errors.New("wrong")
	})
	require.Equal(t, "a/0", <-handled)
	require.Equal(t, "a/1", <-handled)

	_, err := bus.NewRouter(bus.RouterOptions{DeadLetterTopic: "dead"})
	require.Error(t, err)
}

func TestRouter_ContinuesTraceAndCorrelation(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	createTopic(t, k, "next", 1)
	exporter := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)).Tracer("test")

	p := publisher(t, k)
	ctx, root := tracer.Start(context.Background(), "root")
	first := keyed("a", "0")
	first.Metadata.Set("ce_correlationid", "c-1")
	first.SetContext(ctx)
	publish(t, p, "topic", first)
	require.Empty(t, first.Metadata.Get("traceparent"), "the caller's message is not changed")

	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead", Tracer: tracer}, func(m *message.Message) error {
		if bus.CorrelationOf(m.Context()) != "c-1" {
			return errors.New("no correlation")
		}
		m2 := keyed("b", "0")
		m2.SetContext(m.Context())
		if err := p.Publish("next", m2); err != nil {
			return err
		}
		return retry.Permanent(errors.New("wrong"))
	})
	got := receive(t, subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "next"))
	require.Equal(t, "c-1", got.Metadata.Get("ce_correlationid"))
	receive(t, letters(t, k))
	root.End()

	spans := map[string]tracetest.SpanStub{}
	meshtest.Eventually(t, "all spans ended", func() bool {
		for _, s := range exporter.GetSpans() {
			spans[s.Name] = s
		}
		return len(spans) == 5
	})
	tree := map[string]string{"send topic": "root", "process topic": "send topic", "send next": "process topic",
		"send dead": "process topic"}
	for child, parent := range tree {
		require.Equal(t, root.SpanContext().TraceID(), spans[child].SpanContext.TraceID(), child)
		require.Equal(t, spans[parent].SpanContext.SpanID(), spans[child].Parent.SpanID(), child)
	}
	require.Equal(t, trace.SpanKindProducer, spans["send topic"].SpanKind)
	require.Equal(t, trace.SpanKindConsumer, spans["process topic"].SpanKind)
	partition := strconv.Itoa(int(envelope.Partition("a", 3)))
	require.Subset(t, spans["process topic"].Attributes, []attribute.KeyValue{
		attribute.String("messaging.system", "kafka"),
		attribute.String("messaging.destination.name", "topic"),
		attribute.String("messaging.operation.type", "process"),
		attribute.String("messaging.kafka.message.key", "a"),
		attribute.String("messaging.message.id", "a/0"),
		attribute.String("messaging.consumer.group.name", k.Topic("test.topic")),
		attribute.String("messaging.destination.partition.id", partition),
		attribute.Int64("messaging.kafka.offset", 0),
	})
	require.Subset(t, spans["send topic"].Attributes, []attribute.KeyValue{
		attribute.String("messaging.system", "kafka"),
		attribute.String("messaging.destination.name", "topic"),
		attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.kafka.message.key", "a"),
		attribute.String("messaging.message.id", "a/0"),
		attribute.String("messaging.destination.partition.id", partition),
		attribute.Int64("messaging.kafka.offset", 0),
	})
	require.Equal(t, "wrong", spans["process topic"].Status.Description)
}

// The router handles each message in a goroutine of its own. Nevertheless, messages of one key must be handled in
// order, because the subscriber's lanes deliver them one after the other.
func TestRouter_HandlesAKeyInOrder(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	prepare(t, k)
	p := publisher(t, k)
	const keys, each = 20, 100
	var batch []*message.Message
	for n := range each {
		for key := range keys {
			batch = append(batch, keyed("k"+strconv.Itoa(key), strconv.Itoa(n)))
		}
	}
	publish(t, p, "topic", batch...)
	recorded := newRecorder()
	route(t, k, bus.RouterOptions{DeadLetterTopic: "dead"}, func(m *message.Message) error {
		recorded.begin(m)
		recorded.end(m)
		return nil
	})
	meshtest.Eventually(t, "all messages are handled", func() bool { return recorded.total() == keys*each })
	require.Empty(t, recorded.violations)
	require.Zero(t, recorded.repeats)
}

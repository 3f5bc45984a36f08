package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// Publisher is what a Relay needs of bus.Publisher: it keeps the order of messages with one key, and puts those whose
// metadata name a partition into that. A failed call may have published any part of it.
type Publisher interface {
	Publish(topic string, messages ...*message.Message) error
}

// RelayOptions say where a log is published.
type RelayOptions struct {
	Publisher Publisher
	// Partitions of a topic; nil, or 0 of one: as the catalog declares.
	Partitions func(topic string) int32
	// PositionEvery is how often, at most, the log's position is written into a partition that lags; 0: a second.
	PositionEvery time.Duration
	// SignOfLife is how often it is written into every partition all the same; 0: 30 s.
	SignOfLife time.Duration
}

// Relay publishes a log to its topics, in order and at least once. Of all relays of one log, in whatever instance, one
// works at a time. Nothing new goes to a partition while something older is unconfirmed there; each record names the
// position before it in its partition; and partitions that lag behind the log are told its position. So a reader who
// keeps one number per partition sees repeats and holes (design: "Reading").
type Relay struct {
	log     *Log
	o       RelayOptions
	topics  map[string]int32 // partitions of each topic of the log
	renewal time.Duration
}

// NewRelay makes the relay of a log.
func NewRelay(l *Log, o RelayOptions) *Relay {
	if o.PositionEvery <= 0 {
		o.PositionEvery = time.Second
	}
	if o.SignOfLife <= 0 {
		o.SignOfLife = 30 * time.Second
	}
	r := &Relay{log: l, o: o, topics: map[string]int32{}, renewal: leaseRenewal}
	for _, t := range l.o.Catalog.LoggedTopics(l.o.Owner) {
		r.topics[t.Name] = t.Partitions
		if o.Partitions == nil {
			continue
		}
		if n := o.Partitions(t.Name); n > 0 {
			r.topics[t.Name] = n
		}
	}
	return r
}

// Run publishes until ctx ends. It survives the loss of Postgres and of Kafka.
func (r *Relay) Run(ctx context.Context) error {
	var again backoff
	for ctx.Err() == nil {
		err := r.lead(ctx, &again)
		if ctx.Err() != nil {
			break
		}
		r.log.waiting.set("relay", "postgres", err)
		r.log.o.Log.WarnContext(ctx, "relay does not go on, trying again", "error", err)
		again.wait(ctx)
	}
	return nil
}

// lead relays for as long as the lease holds.
func (r *Relay) lead(ctx context.Context, again *backoff) error {
	lease, ctx, err := r.log.takeLease(ctx, r.renewal)
	if err != nil {
		return err
	}
	defer lease.giveUp(ctx)
	s, err := r.restore(ctx, lease)
	if err != nil {
		return err
	}
	again.reset()
	r.log.waiting.set("relay", "postgres", nil)
	r.log.o.Log.InfoContext(ctx, "relay leads", "position", s.Position)
	for {
		_, moved := r.log.head.now()
		if err := r.tell(ctx, s); err != nil {
			return err
		}
		relayed, err := r.relayNext(ctx, lease, s)
		if err != nil {
			return err
		}
		if relayed < batch {
			if err := r.tell(ctx, s); err != nil {
				return err
			}
			await(ctx, moved, min(poll, time.Until(r.nextDue(s))))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// restore reads how far the relay was; it may have been further.
func (r *Relay) restore(ctx context.Context, lease *lease) (*sequence, error) {
	s := &sequence{}
	err := lease.use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, r.log.sql.relayState).Scan(&s.Position, &s.Last)
	})
	if err != nil {
		return nil, fmt.Errorf("read the relay's state: %w", err)
	}
	return s, nil
}

// relayNext publishes the next batch, waits until it is confirmed and saves that. It says how many events it had.
func (r *Relay) relayNext(ctx context.Context, lease *lease, s *sequence) (int, error) {
	var events []logged
	err := lease.use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		found, err := conn.Query(ctx, r.log.sql.read, s.Position, int64(1<<62), batch, "")
		if err == nil {
			events, err = r.log.scanAll(found)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read the log after %d: %w", s.Position, err)
	}
	if len(events) == 0 {
		return 0, nil
	}
	sending := r.begin(ctx, len(events))
	messages := map[string][]*message.Message{}
	now := time.Now()
	for _, e := range events {
		partitions, ok := r.topics[e.topic]
		if !ok {
			// It was declared once. Nobody reads it any more, and it must not stop the others.
			r.log.o.Log.WarnContext(ctx, "event is left out: its topic is not in the catalog", "topic", e.topic,
				"position", e.Position)
			continue
		}
		to := place{e.topic, bus.Partition(e.Stream, partitions)}
		e.Before = s.append(to, e.Position, now)
		sending.event(&e, to)
		messages[e.topic] = append(messages[e.topic], e.Message())
	}
	err = r.publish(ctx, messages)
	sending.end(err)
	if err != nil {
		return 0, err
	}
	s.Position = events[len(events)-1].Position
	if err := r.save(ctx, lease, s); err != nil {
		return 0, err
	}
	return len(events), nil
}

func (r *Relay) save(ctx context.Context, lease *lease, s *sequence) error {
	err := lease.use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, r.log.sql.saveRelay, s.Position, s.Last)
		return err
	})
	if err != nil {
		return fmt.Errorf("save the relay's state: %w", err)
	}
	return nil
}

// publish returns when all is confirmed, however often it takes, or when ctx ends.
func (r *Relay) publish(ctx context.Context, messages map[string][]*message.Message) error {
	var topics errgroup.Group
	for topic, list := range messages {
		topics.Go(func() error { return r.publishTo(ctx, topic, list) })
	}
	return topics.Wait()
}

func (r *Relay) publishTo(ctx context.Context, topic string, messages []*message.Message) error {
	var again backoff
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := r.o.Publisher.Publish(topic, messages...)
		if err == nil {
			r.log.waiting.set("relay "+topic, "kafka", nil)
			return nil
		}
		if again.tries == 1 {
			r.log.waiting.set("relay "+topic, "kafka", err)
			r.log.o.Log.WarnContext(ctx, "relay waits for the broker", "topic", topic, "error", err)
		}
		again.wait(ctx)
	}
}

// tell writes the log's position into all partitions where that is due.
func (r *Relay) tell(ctx context.Context, s *sequence) error {
	now := time.Now()
	messages := map[string][]*message.Message{}
	for _, p := range r.places() {
		if s.due(p, r.o.PositionEvery, r.o.SignOfLife).After(now) {
			continue
		}
		position, before := s.tell(p, now)
		m := envelope.Position(r.log.o.Owner, position, before).Message()
		m.Metadata.Set(bus.MetadataPartition, strconv.FormatInt(int64(p.partition), 10))
		messages[p.topic] = append(messages[p.topic], m)
	}
	return r.publish(ctx, messages)
}

func (r *Relay) nextDue(s *sequence) time.Time {
	next := time.Now().Add(r.o.SignOfLife)
	for _, p := range r.places() {
		if due := s.due(p, r.o.PositionEvery, r.o.SignOfLife); due.Before(next) {
			next = due
		}
	}
	return next
}

// places are all partitions of the log's topics.
func (r *Relay) places() (all []place) {
	for _, topic := range slices.Sorted(maps.Keys(r.topics)) {
		for p := range r.topics[topic] {
			all = append(all, place{topic, p})
		}
	}
	return all
}

// sending is the spans of one batch: one for each event, in the trace of what caused it, linked with that of the batch.
type sending struct {
	relay *Relay
	batch trace.Span
	spans []trace.Span
}

func (r *Relay) begin(ctx context.Context, events int) *sending {
	_, span := r.log.o.Tracer.Start(ctx, "relay "+r.log.o.Owner, trace.WithNewRoot(), trace.WithAttributes(
		attribute.String("messaging.system", "kafka"), attribute.Int("messaging.batch.message_count", events)))
	return &sending{relay: r, batch: span}
}

// event starts the span of an event, which is what its record continues.
func (x *sending) event(e *logged, to place) {
	ctx, span := x.relay.log.o.Tracer.Start(telemetry.Continue(context.Background(), e.TraceParent), "send "+to.topic,
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithLinks(trace.Link{SpanContext: x.batch.SpanContext()}),
		trace.WithAttributes(
			attribute.String("messaging.system", "kafka"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.operation.name", "send"),
			attribute.String("messaging.destination.name", to.topic),
			attribute.String("messaging.destination.partition.id", strconv.FormatInt(int64(to.partition), 10)),
			attribute.String("messaging.message.id", e.ID),
			attribute.String("messaging.kafka.message.key", e.Stream)))
	if t := telemetry.TraceParent(ctx); t != "" {
		e.TraceParent = t
	}
	x.spans = append(x.spans, span)
}

func (x *sending) end(err error) {
	for _, span := range append(x.spans, x.batch) {
		if err != nil && !errors.Is(err, context.Canceled) {
			span.RecordError(err)
		}
		span.End()
	}
}

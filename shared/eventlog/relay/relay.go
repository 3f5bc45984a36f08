// Package relay publishes an owner's log to its topics. It is separate from package eventlog, so that a program that
// only reads or writes a log does not link a Kafka client. A relay follows the log by position, under a lease, on a
// database connection of its own.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/retry"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// Publisher publishes the messages of a Relay; bus.Publisher implements it. Publish keeps the order of messages with
// the same key, and puts messages into the partition that their metadata names. A failed call may have published some
// of the messages.
type Publisher interface {
	Publish(topic string, messages ...*message.Message) error
}

// Options configure a Relay.
type Options struct {
	Publisher Publisher
	// Partitions returns the number of partitions that a topic has on the broker. An error that wraps
	// retry.ErrUnavailable or context.DeadlineExceeded means that the number is not known at the moment; any other
	// error, or 0, means that the topic does not exist or cannot be used. Nil: the relay uses the numbers that the
	// catalog declares.
	Partitions func(ctx context.Context, topic string) (int32, error)
	// LastRecords returns the newest record of each partition of a topic. The relay uses these records to detect that
	// the database has lost commits. Nil: the relay does not detect this.
	LastRecords func(ctx context.Context, topic string) ([]*message.Message, error)
	// PositionEvery is the minimum interval between position records in a partition that lags; 0: one second.
	PositionEvery time.Duration
	// SignOfLife is the maximum interval between two records of a partition, even if it does not lag; 0: 30 s.
	SignOfLife time.Duration
	// CountEvery is the interval between calls of Partitions for a topic, and between attempts to publish to a paused
	// topic; 0: 5 s.
	CountEvery time.Duration
}

const (
	sqlState = `SELECT position, partitions, topics FROM owner.relay WHERE single`
	sqlSave  = `UPDATE owner.relay SET position = $1, partitions = $2, topics = $3 WHERE single`
)

const (
	// maxBatch is the maximum number of events that are read at a time.
	maxBatch = 500
	// pollInterval is how long a relay waits for a notification that the log has moved. After this time, it reads the log
	// even without a notification.
	pollInterval = time.Second
	// leasePollInterval is the approximate time after which another instance takes over from a relay that has ended.
	leasePollInterval = 400 * time.Millisecond
)

// Relay publishes a log to its topics, in order and at least once. Of all relays of one log, on all instances, one
// works at a time. A relay publishes nothing to a partition while older records of that partition are unconfirmed. Each
// record contains the position of the previous record in its partition, and the relay writes position records, which
// contain the log's position instead of an event, into partitions that lag behind the log. So a reader that stores one
// position per partition detects repeated and missing events.
//
// The relay chooses the partition of an event by the partition count of the topic's current epoch. When a topic has
// grown, the relay writes a fence into all its partitions before it uses the new count. If the relay cannot publish to
// a topic, because the topic has vanished, has shrunk or is forbidden, the relay pauses the topic, logs an error, and
// reports that it waits for Kafka (eventlog.Options.Waiting). Other topics are not delayed. Once publishing works
// again, readers of the topic detect that events are missing and read them from the log.
type Relay struct {
	log       *eventlog.Log
	owner     string
	logger    *slog.Logger
	tracer    trace.Tracer
	o         Options
	topics    map[string]*topic
	renewal   time.Duration // interval of renewing the lease; 0: the default of package advisory; set by tests
	saveEvery time.Duration // minimum interval between two saves of the state
	batch     int           // maximum number of events that are read at a time
}

// New returns the relay of a log.
func New(l *eventlog.Log, o Options) *Relay {
	if o.PositionEvery <= 0 {
		o.PositionEvery = time.Second
	}
	if o.SignOfLife <= 0 {
		o.SignOfLife = 30 * time.Second
	}
	if o.CountEvery <= 0 {
		o.CountEvery = 5 * time.Second
	}
	of := l.Options()
	r := &Relay{log: l, owner: of.Owner, logger: of.Log, tracer: of.Tracer, o: o, topics: map[string]*topic{},
		saveEvery: 100 * time.Millisecond, batch: maxBatch}
	for _, t := range of.Catalog.LoggedTopics(of.Owner) {
		r.topics[t.Name] = &topic{name: t.Name, declared: t.Partitions}
	}
	return r
}

// Run publishes until ctx ends. While Postgres or Kafka is unavailable, it tries again and again.
func (r *Relay) Run(ctx context.Context) error {
	var delay retry.Backoff
	for ctx.Err() == nil {
		err := r.lead(ctx, &delay)
		if ctx.Err() != nil {
			break
		}
		r.log.SetWaiting("relay", "postgres", err)
		r.logger.WarnContext(ctx, "relay stopped, retrying", "error", err)
		delay.Wait(ctx)
	}
	return nil
}

// leading is the state of a relay while it holds the lease.
type leading struct {
	*Relay
	lease       *advisory.Lease
	incarnation string
	sequence    *sequence
	pending     *shipment // published, but not confirmed yet; nil: nothing is in flight
	read        time.Time // when the log was last read

	confirmed sequence  // the part of the field sequence that is confirmed and may be saved
	unsaved   bool      // whether the field confirmed has changed since it was saved
	saved     time.Time // when the field confirmed was last saved
}

// lead waits for the lease, and relays while this instance holds it.
func (r *Relay) lead(ctx context.Context, delay *retry.Backoff) (err error) {
	lease, ctx, err := r.log.TakeLease(ctx, "relay", advisory.LeaseOptions{Renewal: r.renewal, Every: leasePollInterval,
		Standby: func() { r.log.SetWaiting("relay", "postgres", nil) }}) // a relay that stands by is healthy
	if err != nil {
		return err
	}
	defer lease.Release(ctx)
	x := &leading{Relay: r, lease: lease, sequence: &sequence{}}
	if err := x.restore(ctx); err != nil {
		return err
	}
	stopCounting, err := x.countTopics(ctx)
	if err != nil {
		return err
	}
	defer stopCounting()
	delay.Reset()
	r.log.SetWaiting("relay", "postgres", nil)
	r.logger.InfoContext(ctx, "relay leads", "position", x.sequence.Position, "incarnation", x.incarnation)
	defer func() {
		// Wait until the events in flight are confirmed, and save their position. The next leader publishes events
		// above the saved position again.
		if x.settle(ctx) == nil {
			_ = x.save(ctx, true)
		}
	}()
	for ctx.Err() == nil {
		if err := x.step(ctx); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// step prepares the next shipment while the previous one is being confirmed, and publishes the next shipment once the
// previous one is confirmed. If there is nothing to publish, step waits.
func (x *leading) step(ctx context.Context) error {
	if x.log.Incarnation() != x.incarnation {
		return errors.New("a new incarnation of the log has begun")
	}
	if x.changing() {
		if err := x.settle(ctx); err != nil {
			return err
		}
		if err := x.change(ctx); err != nil {
			return err
		}
	}
	_, moved := x.log.Seen()
	next, err := x.prepare(ctx)
	if err != nil {
		return err
	}
	if err := x.settle(ctx); err != nil {
		return err
	}
	if next != nil {
		x.pending = next
		next.publish(ctx)
		return x.save(ctx, false)
	}
	if err := x.save(ctx, false); err != nil {
		return err
	}
	retry.Await(ctx, moved, x.idle())
	return nil
}

// idle returns how long step may wait while the log does not move: until a position record has to be written, the state
// has to be saved, the log has to be read, or the topics have to be checked (see changing).
func (x *leading) idle() time.Duration {
	next := time.Now().Add(min(pollInterval, x.o.CountEvery))
	for _, p := range x.partitions() {
		if due := x.sequence.due(p, x.o.PositionEvery, x.o.SignOfLife); due.Before(next) {
			next = due
		}
	}
	if due := x.saved.Add(x.saveEvery); x.unsaved && due.Before(next) {
		next = due
	}
	return time.Until(next)
}

// restore begins a new incarnation if the log has lost commits (see recogniseLoss), and reads the saved state of the
// relay. More events may have been published than this state shows.
func (x *leading) restore(ctx context.Context) error {
	if err := x.recogniseLoss(ctx); err != nil {
		return err
	}
	s := x.sequence
	err := x.lease.Use(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		head, err := x.log.ReadHead(ctx, conn)
		if err != nil {
			return err
		}
		x.incarnation = head.Incarnation
		return conn.QueryRow(ctx, x.log.SQL(sqlState)).Scan(&s.Position, &s.Last, &s.Topics)
	})
	if err != nil {
		return fmt.Errorf("read the relay's state: %w", err)
	}
	x.confirmed, x.saved = s.saved(), time.Now()
	return nil
}

// shipment is a set of messages that are published together.
type shipment struct {
	relay    *leading
	messages map[string][]*message.Message // by topic
	spans    *sending
	after    sequence // the sequence to save once the messages are confirmed
	done     chan error

	mu       sync.Mutex
	unusable map[*topic]error
}

func (x *leading) ship() *shipment {
	return &shipment{relay: x, messages: map[string][]*message.Message{}, unusable: map[*topic]error{},
		done: make(chan error, 1)}
}

// prepare makes a shipment of the next events of the log and of the position records that are due. It returns nil if
// there are neither events nor position records.
func (x *leading) prepare(ctx context.Context) (*shipment, error) {
	events, err := x.next(ctx)
	if err != nil {
		return nil, err
	}
	n := x.ship()
	s, now := x.sequence, time.Now()
	if len(events) > 0 {
		n.spans = x.begin(ctx, len(events))
		s.Position = events[len(events)-1].Position
	}
	for _, e := range events {
		t, ok := x.topics[e.Topic]
		if !ok {
			// An earlier release declared this topic. Nothing reads it any more, so its events must not hold up the
			// others.
			x.logger.WarnContext(ctx, "event not published: its topic is not in the catalog", "topic", e.Topic,
				"position", e.Position)
			continue
		}
		of := s.Topics[t.name]
		to := topicPartition{e.Topic, envelope.Partition(e.PartitionKey(), of.Count)}
		e.Before = s.append(to, e.Position, now)
		if t.paused != nil {
			continue // the topic's readers will detect that this event is missing
		}
		e.Incarnation, e.Epoch, e.Partitions = x.incarnation, of.Epoch, of.Count
		n.spans.event(&e, to)
		n.messages[e.Topic] = append(n.messages[e.Topic], addressed(e.Event, to.partition))
	}
	for _, p := range x.partitions() {
		if !s.due(p, x.o.PositionEvery, x.o.SignOfLife).After(now) {
			n.messages[p.topic] = append(n.messages[p.topic], addressed(x.position(p, now), p.partition))
		}
	}
	if len(events) == 0 && len(n.messages) == 0 {
		return nil, nil
	}
	n.after = s.saved()
	return n, nil
}

func addressed(e envelope.Event, partition int32) *message.Message {
	m := e.Message()
	m.Metadata.Set(bus.MetadataPartition, strconv.FormatInt(int64(partition), 10))
	return m
}

// position returns a record with the log's position for a partition.
func (x *leading) position(p topicPartition, now time.Time) envelope.Event {
	position, before := x.sequence.announce(p, now)
	e := envelope.Position(x.owner, position, before)
	of := x.sequence.Topics[p.topic]
	e.Incarnation, e.Epoch, e.Partitions = x.incarnation, of.Epoch, of.Count
	return e
}

// next reads the events above the relay's position.
func (x *leading) next(ctx context.Context) ([]eventlog.Logged, error) {
	s := x.sequence
	if head, _ := x.log.Seen(); head <= s.Position && time.Since(x.read) < pollInterval {
		return nil, nil
	}
	begun := time.Now()
	var events []eventlog.Logged
	var head eventlog.Head
	err := x.lease.Use(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		read := func() error {
			b := &pgx.Batch{}
			x.log.QueueRead(b, s.Position, x.batch, &events)
			return conn.SendBatch(ctx, b).Close()
		}
		if err := read(); err != nil || len(events) > 0 {
			return err
		}
		if head, err = x.log.ReadHead(ctx, conn); err != nil || head.Floor <= s.Position {
			return err
		}
		return read() // the previous incarnation may have got further events since the first read
	})
	if err != nil {
		return nil, fmt.Errorf("read the log after %d: %w", s.Position, err)
	}
	if len(events) < x.batch {
		x.read = begun
	}
	if len(events) == 0 && head.Position > s.Position {
		if head.Floor > s.Position {
			s.Position = head.Floor // no event is between these positions
		}
		x.read = time.Time{} // read again without waiting: events may have been committed meanwhile
	}
	return events, nil
}

// settle waits until the shipment in flight is confirmed.
func (x *leading) settle(ctx context.Context) error {
	n := x.pending
	if n == nil {
		return nil
	}
	x.pending = nil
	if err := n.settled(ctx); err != nil {
		return err
	}
	x.confirmed, x.unsaved = n.after, true
	return nil
}

// save stores the confirmed sequence. If the parameter now is false, save does so at most once per saveEvery. If this
// instance ends before it has saved a confirmed sequence, the next leader merely publishes the same events again.
func (x *leading) save(ctx context.Context, now bool) error {
	if !x.unsaved || !now && time.Since(x.saved) < x.saveEvery {
		return nil
	}
	err := x.lease.Use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, x.log.SQL(sqlSave), x.confirmed.Position, x.confirmed.Last, x.confirmed.Topics)
		return err
	})
	if err != nil {
		return fmt.Errorf("save the relay's state: %w", err)
	}
	x.unsaved, x.saved = false, time.Now()
	return nil
}

// partitions returns all partitions to which the relay publishes; it leaves out paused topics.
func (x *leading) partitions() (all []topicPartition) {
	for _, name := range slices.Sorted(maps.Keys(x.topics)) {
		if x.topics[name].paused != nil {
			continue
		}
		for p := range x.sequence.Topics[name].Count {
			all = append(all, topicPartition{name, p})
		}
	}
	return all
}

// sending holds the trace spans of a batch: one for each event, in the trace of its cause, linked with the trace span
// of the batch.
type sending struct {
	relay *Relay
	batch trace.Span
	spans []trace.Span
}

func (r *Relay) begin(ctx context.Context, events int) *sending {
	_, span := r.tracer.Start(ctx, "relay "+r.owner, trace.WithNewRoot())
	if span.IsRecording() {
		span.SetAttributes(attribute.String("messaging.system", "kafka"),
			attribute.Int("messaging.batch.message_count", events))
	}
	return &sending{relay: r, batch: span}
}

// event starts the trace span of an event and stores this span in the event's traceparent. If neither the batch nor the
// event's trace is recorded, the event keeps its traceparent.
func (x *sending) event(e *eventlog.Logged, to topicPartition) {
	if !x.batch.IsRecording() && !sampled(e.TraceParent) {
		return
	}
	ctx, span := x.relay.tracer.Start(telemetry.Continue(context.Background(), e.TraceParent), "send "+to.topic,
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

// sampled reports whether a traceparent (W3C Trace Context) marks its trace as sampled, in bit 0 of the flags.
func sampled(traceparent string) bool {
	flags, err := strconv.ParseUint(traceparent[strings.LastIndexByte(traceparent, '-')+1:], 16, 8)
	return err == nil && flags&1 == 1
}

func (x *sending) end(err error) {
	if x == nil {
		return
	}
	for _, span := range append(x.spans, x.batch) {
		if err != nil && !errors.Is(err, context.Canceled) {
			span.RecordError(err)
		}
		span.End()
	}
}

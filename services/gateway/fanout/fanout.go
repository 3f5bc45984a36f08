// Package fanout reads every partition of every event topic and delivers the events to the hub, in the order of each
// partition. It drops repeated events of a log, so that the hub gets each event once. If events are missing in a
// partition (a gap), it reads them from the log of the topic's owner. Records that cannot be read are logged and
// skipped. The package also passes outcomes to the intake: outcomes in events, and outcomes on topics of their own.
package fanout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// Options of a Fanout.
type Options struct {
	Catalog *catalog.Catalog
	Hub     *hub.Hub
	// Owners contains, for each owner, the Connect client with which the gateway calls it. Events that are missing in a
	// partition are read from the owners' logs.
	Owners map[string]meshv1connect.OwnerServiceClient
	// Partitions asks the broker for the number of partitions of a topic. It returns 0 if the topic does not exist.
	Partitions func(ctx context.Context, topic string) (int32, error)
	// Resolve is called with each outcome of a command.
	Resolve func(envelope.Outcome)
	// Ready is called once for each owner, when the channel that Known returns is closed. The function may be nil.
	Ready func(owner string)
	// Waiting is called with an error when work waits for a dependency, and with nil when the work continues. The
	// function may be nil.
	Waiting func(dependency string, err error)
	Tracer  trace.Tracer
	Metrics *Metrics
	Guard   *guard.Guard
	Log     *slog.Logger
}

// Fanout reads events from Kafka and delivers them to the hub.
type Fanout struct {
	options Options
	topics  map[string]*topic
	logs    map[string]*logProgress // by owner
	unknown sync.Map                // types of events that are not in the catalog; each was logged once
}

// logProgress is the progress in the topics of one owner.
type logProgress struct {
	owner string
	shard *hub.Shard
	ready func(owner string)

	mu      sync.Mutex
	topics  []*topic      // the topics of the owner's log
	unknown int           // partitions whose position is not known, and partitions of outcomes that are not read yet
	known   chan struct{} // closed once the field unknown is 0
}

// New returns a Fanout for all topics of a catalog that contain events or outcomes. Run asks the broker for their
// numbers of partitions.
func New(o Options) *Fanout {
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Ready == nil {
		o.Ready = func(string) {}
	}
	if o.Waiting == nil {
		o.Waiting = func(string, error) {}
	}
	f := &Fanout{options: o, topics: map[string]*topic{}, logs: map[string]*logProgress{}}
	for _, owner := range o.Catalog.Owners() {
		log := &logProgress{owner: owner, shard: o.Hub.Shard(owner), ready: o.Ready, known: make(chan struct{})}
		f.logs[owner] = log
		logged := o.Catalog.LoggedTopics(owner)
		for _, t := range o.Catalog.Topics(owner) {
			one := &topic{name: t.Name, log: log, begun: make(chan struct{})}
			switch {
			case t.Name == catalog.ResultTopic(owner):
				one.results = true
			case slices.Contains(logged, t):
				one.logged = true
				log.topics = append(log.topics, one)
			case !slices.Contains(o.Catalog.StateTopics(), t):
				continue
			}
			f.topics[t.Name] = one
		}
	}
	return f
}

// Topics lists all topics that are read, by name.
func (f *Fanout) Topics() (names []string) {
	for name := range f.topics {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Run reads until the context ends.
func (f *Fanout) Run(ctx context.Context, reader *bus.Reader) error {
	if err := f.count(ctx); err != nil {
		return nil // the context has ended
	}
	return reader.Read(ctx, f.Topics(), f.take)
}

// count asks the broker for the numbers of partitions of all topics, and then calls begin. It repeats each question
// until the broker answers that the topic exists.
func (f *Fanout) count(ctx context.Context) error {
	counts := map[string]int32{}
	for _, name := range f.Topics() {
		var backoff retry.Backoff
		for {
			n, err := f.options.Partitions(ctx, name)
			if err == nil && n == 0 {
				err = fmt.Errorf("topic %s does not exist", name)
			}
			if err == nil {
				counts[name] = n
				break
			}
			f.options.Waiting("kafka", err)
			if !backoff.Wait(ctx) {
				return ctx.Err()
			}
		}
	}
	f.options.Waiting("kafka", nil)
	f.begin(counts)
	return nil
}

// begin creates a partition struct for each partition of a log's topics. It adds the number of partitions of each topic
// of outcomes to logProgress.unknown.
func (f *Fanout) begin(counts map[string]int32) {
	for _, log := range f.logs {
		log.mu.Lock()
		log.unknown = 1 // one too many, so that unknown cannot reach 0 before all partitions are counted below
		log.mu.Unlock()
	}
	for name, t := range f.topics {
		switch {
		case t.logged:
			t.counts = map[int32]int32{0: counts[name]}
			t.grow(f, counts[name], -1)
		case t.results:
			t.log.expect(int(counts[name]))
		}
	}
	for _, log := range f.logs {
		log.partitionKnown()
	}
}

// From returns the offset at which to start reading a partition, see bus.ReaderOptions. A topic of events is read from
// its last record, which contains the partition's position if the topic belongs to a log. A topic of outcomes is read
// from its end, because no client of this gateway has sent a command yet. For a topic of outcomes, From also records
// that the partition is read.
func (f *Fanout) From(topic string, _ int32, _, end int64) int64 {
	t := f.topics[topic]
	if t == nil || !t.results {
		return end - 1
	}
	t.log.partitionKnown()
	return end
}

// complete returns the lowest position among the partitions of an owner's log; see hub.Shard.Complete.
func (r *logProgress) complete() catalog.Position {
	complete := catalog.Position(math.MaxInt64)
	for _, t := range r.topics {
		for _, p := range t.all() {
			complete = min(complete, catalog.Position(p.complete.Load()))
		}
	}
	return complete
}

// expect adds a number of partitions to the field unknown.
func (r *logProgress) expect(partitions int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unknown += partitions
}

func (r *logProgress) partitionKnown() {
	r.mu.Lock()
	r.unknown--
	done := r.unknown == 0
	select {
	case <-r.known: // closed already; the partition was added later
		done = false
	default:
	}
	if done {
		close(r.known)
	}
	r.mu.Unlock()
	if done {
		r.ready(r.owner)
	}
}

// Known returns a channel that is closed once the position of every partition of an owner's log is known and the
// fan-out has begun to read every partition of the owner's outcomes. From then on the hub gets every event of the
// owner, and the intake every outcome.
func (f *Fanout) Known(owner string) <-chan struct{} { return f.logs[owner].known }

func (r *logProgress) isKnown() bool {
	select {
	case <-r.known:
		return true
	default:
		return false
	}
}

// silence is how long a partition may have no new record before Reading reports it. The owner's relay publishes at
// least one record in each partition every 30 s (relay.Options.SignOfLife).
const silence = 75 * time.Second

// Reading returns an error that describes why the fan-out does not read every partition, or nil.
func (f *Fanout) Reading() error {
	var missing []string
	for owner, log := range f.logs {
		if !log.isKnown() {
			missing = append(missing, owner)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("the positions of the topics of %s are not known yet", strings.Join(missing, ", "))
	}
	for _, t := range f.topics {
		for _, p := range t.all() {
			if d := time.Since(p.heard()); d > silence {
				return fmt.Errorf("%s/%d had no record for %s", t.name, p.number, d.Round(time.Second))
			}
		}
	}
	return nil
}

// take handles one record. A panic affects that record only.
func (f *Fanout) take(ctx context.Context, r *bus.Record) {
	defer f.options.Guard.Recover("fan-out", func() { f.unreadable(r, errors.New("the record caused a panic")) })
	t := f.topics[r.Topic]
	if t.results {
		outcome, err := envelope.ReadRawOutcome(r.Headers)
		if err != nil {
			f.unreadable(r, err)
			return
		}
		f.options.Resolve(outcome)
		return
	}
	e, err := envelope.ReadRawEvent(r.Headers, r.Value)
	switch {
	case err != nil:
		// If the topic belongs to a log, the next record shows that an event is missing, and the event is then read
		// from the owner's log.
		f.unreadable(r, err)
	case !e.IsPosition() && e.Class == routingv1.Class_CLASS_EPHEMERAL:
		f.deliver(t.log, &e, false)
	case !t.logged:
		f.unreadable(r, fmt.Errorf("%s is on a topic without a log", e.Type))
	default:
		t.partition(f, r.Partition).takeRetrying(ctx, f, &e, r.Ahead...)
	}
}

// deliver delivers an event to the connections in its rooms, and then resolves the outcome in the event, if the event
// contains one. An event that is superseded is delivered only to the connections of the user who caused it.
func (f *Fanout) deliver(log *logProgress, e *envelope.Event, superseded bool) {
	declared, known := f.options.Catalog.Event(e.Type)
	if !known {
		if _, reported := f.unknown.LoadOrStore(e.Type, true); !reported {
			f.options.Log.Warn("fan-out: an event has a type that this gateway does not know", "type", e.Type, "id", e.ID)
		}
	}
	span := f.span(e)
	event := hub.NewEvent(*e, declared)
	event.Superseded = superseded
	n := log.shard.Deliver(event)
	if n > 0 {
		if err := event.Err(); err != nil {
			f.options.Log.Error("fan-out: an event cannot be encoded", "error", err)
			f.options.Metrics.Unreadable.Inc()
		}
	}
	if span != nil {
		span.SetAttributes(attribute.Int("edumatrix.connections", n))
		span.End()
	}
	if e.Answers {
		f.options.Resolve(e.Outcome())
	}
}

func (f *Fanout) unreadable(r *bus.Record, err error) {
	f.options.Log.Error("fan-out: a record cannot be read", "topic", r.Topic, "partition", r.Partition,
		"offset", r.Offset, "error", err)
	f.options.Metrics.Unreadable.Inc()
}

// span starts a trace span for an event if the event's trace is recorded. Otherwise, span returns nil.
func (f *Fanout) span(e *envelope.Event) trace.Span {
	if e.TraceParent == "" {
		return nil
	}
	ctx := telemetry.Continue(context.Background(), e.TraceParent)
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	_, span := f.options.Tracer.Start(ctx, "fan-out "+e.Type, trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attribute.String("edumatrix.stream", e.Stream), attribute.Int64("edumatrix.version", int64(e.Version))))
	return span
}

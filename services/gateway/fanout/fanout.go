// Package fanout reads every partition of every event topic and brings each event to the hub, once and in order: what
// was read before is dropped, what is missing in a partition is filled from its owner's log. Outcomes go to the intake.
package fanout

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Options of a Fanout.
type Options struct {
	Catalog *catalog.Catalog
	Hub     *hub.Hub
	// Owners are the inner listeners of the owners, by name; their logs fill holes.
	Owners map[string]meshv1connect.OwnerServiceClient
	// Resolve takes the outcomes of commands.
	Resolve func(envelope.Result)
	Tracer  trace.Tracer
	Metrics *Metrics
	Log     *slog.Logger
}

// Fanout is the way from Kafka to the hub.
type Fanout struct {
	options    Options
	owners     map[string]string   // of each topic
	logs       map[string]*reading // by owner
	partitions map[place]*partition

	mu       sync.Mutex
	outcomes map[place]int64 // where the partitions of results topics were begun
}

// place is one partition of one topic.
type place struct {
	topic  string
	number int32
}

// reading is how far what one owner tells is known.
type reading struct {
	partitions []*partition // of its log

	mu      sync.Mutex
	unknown int           // partitions whose number is not known yet, and those of results that are not read yet
	known   chan struct{} // closed when there are none left
}

// New makes a Fanout for all topics of a catalog.
func New(o Options) *Fanout {
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	f := &Fanout{options: o, owners: map[string]string{}, logs: map[string]*reading{},
		partitions: map[place]*partition{}, outcomes: map[place]int64{}}
	for _, t := range o.Catalog.Topics("") {
		f.owners[t.Name] = t.Owner
	}
	for _, owner := range o.Catalog.Owners() {
		r := &reading{known: make(chan struct{})}
		f.logs[owner] = r
		for _, t := range o.Catalog.Topics(owner) {
			if t.Name == catalog.ResultTopic(owner) {
				r.unknown += int(t.Partitions)
			}
		}
		for _, t := range o.Catalog.LoggedTopics(owner) {
			r.unknown += int(t.Partitions)
			for n := range t.Partitions {
				p := &partition{topic: t, number: n, log: r}
				f.partitions[place{t.Name, n}] = p
				r.partitions = append(r.partitions, p)
			}
		}
	}
	return f
}

// Topics lists all topics that are read, by name.
func (f *Fanout) Topics() []string {
	var names []string
	for _, t := range slices.Concat(f.options.Catalog.LoggedTopics(""), f.options.Catalog.StateTopics()) {
		names = append(names, t.Name)
	}
	for _, owner := range f.options.Catalog.Owners() {
		names = append(names, catalog.ResultTopic(owner))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Handle puts the handlers of all topics into a router.
func (f *Fanout) Handle(router *message.Router, reader message.Subscriber) {
	for _, topic := range f.Topics() {
		router.AddConsumerHandler("fanout "+topic, topic, reader, f.handler(topic))
	}
}

func (f *Fanout) handler(topic string) message.NoPublishHandlerFunc {
	for _, owner := range f.options.Catalog.Owners() {
		if topic == catalog.ResultTopic(owner) {
			return f.result
		}
	}
	return func(m *message.Message) error { return f.event(topic, m) }
}

// From says where to begin with a partition (bus.ReaderOptions): at its last record, which tells its number; of
// outcomes at its end, since whoever waits for one here has not sent the command yet.
func (f *Fanout) From(topic string, partition int32, _, end int64) int64 {
	if topic != catalog.ResultTopic(f.owners[topic]) {
		return end - 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	at := place{topic, partition}
	if begun, again := f.outcomes[at]; again {
		return begun // what came since is waited for here already
	}
	f.outcomes[at] = end
	f.logs[f.owners[topic]].partitionKnown()
	return end
}

// complete is the position up to which all of an owner's log was delivered, or lay before this gateway began.
func (f *Fanout) complete(owner string) int64 {
	complete := int64(math.MaxInt64)
	for _, p := range f.logs[owner].partitions {
		complete = min(complete, p.complete.Load())
	}
	return complete
}

// Known is closed once the number of every partition of an owner's log is known, and its outcomes are read: from then
// on the hub gets all that the owner appends, and the intake all outcomes.
func (f *Fanout) Known(owner string) <-chan struct{} { return f.logs[owner].known }

// Ready says whether all that an owner tells is read.
func (f *Fanout) Ready(owner string) bool {
	select {
	case <-f.Known(owner):
		return true
	default:
		return false
	}
}

// Missing lists the owners of whom not everything is read yet.
func (f *Fanout) Missing() []string {
	var owners []string
	for owner := range f.logs {
		if !f.Ready(owner) {
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	return owners
}

// silence is how long nothing may be read of a partition: its owner gives a sign of life every 30 s.
const silence = 75 * time.Second

// Reading says what keeps the fan-out from reading every partition.
func (f *Fanout) Reading() error {
	if missing := f.Missing(); len(missing) > 0 {
		return fmt.Errorf("where the topics of %s stand is not known yet", strings.Join(missing, ", "))
	}
	for at, p := range f.partitions {
		if d := time.Since(p.heard()); d > silence {
			return fmt.Errorf("nothing was read of %s/%d for %s", at.topic, at.number, d.Round(time.Second))
		}
	}
	return nil
}

// result brings an outcome to whoever waits for it.
func (f *Fanout) result(m *message.Message) error {
	r, err := envelope.ReadResult(m)
	if err != nil {
		f.unreadable(m.Context(), "", err)
		return nil
	}
	f.options.Resolve(r)
	return nil
}

// event takes one record of an event topic.
func (f *Fanout) event(topic string, m *message.Message) error {
	e, err := envelope.ReadEvent(m)
	if err != nil {
		// Nobody is told what it was; where it stood in the log, the next record's "before" shows a hole there.
		f.unreadable(m.Context(), topic, err)
		return nil
	}
	if !e.IsPosition() && e.Class == routingv1.Class_CLASS_EPHEMERAL {
		f.deliver(m.Context(), f.owners[topic], e)
		return nil
	}
	number, _ := bus.PartitionOf(m.Context())
	p := f.partitions[place{topic, number}]
	if p == nil {
		return fmt.Errorf("%s has a partition %d, which its declaration does not know", topic, number)
	}
	return p.take(m.Context(), f, e)
}

// deliver brings an event to its outcome's waiters and to the connections in its rooms.
func (f *Fanout) deliver(ctx context.Context, owner string, e envelope.Event) {
	declared, known := f.options.Catalog.Event(e.Type)
	if !known {
		f.options.Log.Warn("fan-out: an event of a type that this gateway does not know", "type", e.Type, "id", e.ID)
	}
	_, span := f.options.Tracer.Start(ctx, "fan-out "+e.Type, trace.WithAttributes(
		attribute.String("mesh.stream", e.Stream), attribute.Int64("mesh.version", e.Version)))
	e.Body = bytes.Clone(e.Body) // it is a part of everything that was fetched with it, and is kept
	event := hub.NewEvent(e, declared)
	n := f.options.Hub.View(owner).Deliver(event)
	if n > 0 {
		if _, err := event.Frame(); err != nil {
			f.options.Log.Error("fan-out: an event cannot be shown", "error", err)
			f.options.Metrics.Unreadable.Inc()
		}
	}
	span.SetAttributes(attribute.Int("mesh.connections", n))
	span.End()
	if e.Answers {
		f.options.Resolve(e.Result())
	}
}

func (f *Fanout) unreadable(ctx context.Context, topic string, err error) {
	partition, _ := bus.PartitionOf(ctx)
	offset, _ := bus.OffsetOf(ctx)
	f.options.Log.Error("fan-out: a record cannot be read", "topic", topic, "partition", partition, "offset", offset,
		"error", err)
	f.options.Metrics.Unreadable.Inc()
}

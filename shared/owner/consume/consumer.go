// Package consume applies the events of other owners' topics to a service's own log: each event once, the events of a
// partition in order, completely.
//
// A topic is consumed partition by partition. Each partition has a checkpoint in the service's own database, which is
// compared and moved in the transaction of what follows from the events; so two instances that both believe that they
// have a partition cannot both apply an event. Each record contains the position before it in its partition. A record
// whose "before" is above the checkpoint proves that something is missing, and only then the owner's log is read.
//
// One goroutine per partition, the applier, takes the records that have come in, fills holes from the owner's log, asks
// the reaction what follows, writes that in as few transactions as the bounds allow, and acknowledges the records. Where
// commands follow, the service's aggregates decide them in that transaction (Options.Commit). An event that leads to
// nothing costs no transaction: progress is stored once a second. An event that fails by itself parks its stream; the
// other streams go on.
package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

const (
	// Window is the number of records of a partition that are taken before the first of them is stored. It bounds what
	// progress without effect costs: a second's worth of records is stored together.
	Window = 4096
	// saveEvery is how often progress without effect is stored.
	saveEvery = time.Second
	// maxUnsaved records are taken before progress is stored earlier.
	maxUnsaved = Window / 2
	// maxRecords are taken from the queue together.
	maxRecords = 512
	// maxStreams, maxEvents and maxBytes bound one transaction.
	maxStreams = 256
	maxEvents  = 4096
	maxBytes   = 4 << 20

	firstPause = 50 * time.Millisecond
	maxPause   = 5 * time.Second
)

// Options of a Consumer.
type Options struct {
	Source     string // owner of the topic
	Topic      string
	Since      Since
	React      Reaction
	Partitions int32 // of the topic in releases whose records did not contain the count
	Log        *eventlog.Log
	// Commit decides the commands that effects contain. Nil: the service decides none, and an event with one is parked.
	Commit  Commit
	Catalog *catalog.Catalog
	Owner   meshv1connect.OwnerServiceClient // of the source
	// Waiting is told when something cannot go on because a dependency does not answer, and with nil when it goes on.
	Waiting func(dependency string, err error)
	Logger  *slog.Logger
}

// Consumer consumes one topic. It is safe for concurrent use.
type Consumer struct {
	o      Options
	ctx    context.Context // ends when nothing may be committed any more
	logger *slog.Logger

	mu       sync.Mutex
	appliers map[int32]*applier
	begun    *eventlog.Consumer // nil: not known yet
	running  sync.WaitGroup
}

// New makes a Consumer. Nothing is committed after ctx has ended.
func New(ctx context.Context, o Options) (*Consumer, error) {
	if o.Since.kind == sinceUnset {
		return nil, fmt.Errorf("consume %s of %s: it is not said from when on (FromStart, FromNow, FromTime)", o.Topic, o.Source)
	}
	if o.Waiting == nil {
		o.Waiting = func(string, error) {}
	}
	if o.Commit == nil {
		o.Commit = commitPlainly(o.Log)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Consumer{o: o, ctx: ctx, logger: o.Logger.With("source", o.Source, "topic", o.Topic),
		appliers: map[int32]*applier{}}, nil
}

// Source is the owner of the topic.
func (c *Consumer) Source() string { return c.o.Source }

// Topic is the one that is consumed.
func (c *Consumer) Topic() string { return c.o.Topic }

// Handle is a handler for a router. It returns when the record's partition is stored up to it. Its subscriber has to keep
// the order within partitions (bus.SubscriberOptions.InOrder).
func (c *Consumer) Handle(m *message.Message) error {
	e, err := envelope.ReadEvent(m)
	if err != nil {
		return bus.Permanent(err) // the next record's "before" shows the hole, which the owner's log fills
	}
	partition, ok := bus.PartitionOf(m.Context())
	claim, claimed := bus.ClaimOf(m.Context())
	if !ok || !claimed {
		return bus.Permanent(errors.New("the message does not come from a partition"))
	}
	d := &delivery{event: e, trace: m.Context(), done: make(chan error, 1)}
	c.applierOf(partition, claim).put(d)
	bus.Release(m) // it has its place in the queue
	return <-d.done
}

// applierOf returns the applier of a claim. A partition that has come back has a new one, which reads its checkpoint.
func (c *Consumer) applierOf(partition int32, claim *bus.Claim) *applier {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.appliers[partition]; a != nil && a.claim == claim && !a.hasEnded() {
		return a
	}
	a := newApplier(c, partition, claim)
	c.appliers[partition] = a
	c.running.Go(a.run)
	return a
}

// Wait returns when all appliers have ended; no message may come any more.
func (c *Consumer) Wait() { c.running.Wait() }

// CatchUp has this instance's partitions read the owner's log up to an event that the topic did not bring. It does not
// wait for it. An event that is applied already is nothing new.
func (c *Consumer) CatchUp(e envelope.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.appliers {
		a.catchUp(e.Position)
	}
}

// patiently tries for as long as Postgres or the owner does not answer, until over is closed.
func (c *Consumer) patiently(over <-chan struct{}, try func() error) error {
	away := ""
	defer func() {
		if away != "" {
			c.o.Waiting(away, nil)
		}
	}()
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		err := try()
		var elsewhere *awayError
		if !errors.As(err, &elsewhere) && !errors.Is(err, bus.ErrAway) {
			return err
		}
		now := "postgres"
		if elsewhere != nil {
			now = elsewhere.service
		}
		if away != "" && away != now {
			c.o.Waiting(away, nil) // it has answered, or the other would not have been asked
		}
		away = now
		c.o.Waiting(away, err)
		if !pause(c.ctx, over, wait) {
			return err
		}
	}
}

// pause waits; it reports whether the time has passed before ctx ended or over was closed.
func pause(ctx context.Context, over <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-over:
	}
	return false
}

// awayError reports that another service does not answer.
type awayError struct {
	service string
	err     error
}

func (e *awayError) Error() string { return e.service + " does not answer: " + e.err.Error() }

func (e *awayError) Unwrap() error { return e.err }

// Package consume applies the events of other owners' topics to a service's own log. It applies each event once, and
// the events of a stream in order.
//
// A topic is consumed partition by partition. Each partition has a checkpoint in the service's own database. The
// transaction that stores the effects of events moves the checkpoint, and fails if the checkpoint is not the expected
// one. So if two instances consume the same partition at the same time, only one of them can apply an event. Each
// record contains the position of the record before it in its partition. If this position is above the checkpoint,
// events are missing, and are read from the owner's log. While no event is missing, events are read from the topic
// only.
//
// One goroutine per partition, the applier, takes the records that have arrived, reads missing events from the owner's
// log, calls the reaction, writes the effects in as few transactions as the bounds allow, and acknowledges the records.
// If effects are commands, the service's aggregates decide them, and the same transaction stores their outcomes
// (Options.Commit). An event without effects costs no transaction of its own: the checkpoint is stored once a second.
// An event that fails parks its stream until an operator retries or drops the event; the other streams go on.
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
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	// Window is the maximum number of records of a partition that wait for a checkpoint. It is large, because the
	// checkpoint of records without effects is usually stored only once per second.
	Window = 4096
	// saveEvery is how often a checkpoint without effects is stored.
	saveEvery = time.Second
	// maxUnsaved is the number of waiting records at which the checkpoint is stored before saveEvery has passed.
	maxUnsaved = Window / 2
	// maxRecords is the maximum number of records that are taken from the queue together.
	maxRecords = 512
	// maxStreams, maxEvents and maxBytes bound the effects of one transaction (see size.fits).
	maxStreams = 256
	maxEvents  = 4096
	maxBytes   = 4 << 20

	firstPause = 50 * time.Millisecond
)

// Options configure a Consumer.
type Options struct {
	Source     string // owner of the topic
	Topic      string
	Since      Since
	React      Reaction
	Partitions int32 // of the topic; used only if the first record lacks this number (records of earlier releases do)
	Log        *eventlog.Log
	// Commit commits writes, and decides the commands among the effects. Nil: the service does not decide commands, and
	// an event whose effects contain a command is parked.
	Commit  Commit
	Catalog *catalog.Catalog
	Owner   meshv1connect.OwnerServiceClient // of the source
	// Waiting is called when work cannot continue because a dependency is unavailable, and with a nil error when it
	// continues.
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
	begun    *inbox.Consumer // nil: not known yet
	running  sync.WaitGroup
}

// New returns a Consumer. After ctx has ended, the Consumer commits nothing, except in a call of Resolve.
func New(ctx context.Context, o Options) (*Consumer, error) {
	if o.Since.kind == sinceUnset {
		return nil, fmt.Errorf("consume %s of %s: Since is not set; use FromStart, FromNow or FromTime", o.Topic, o.Source)
	}
	if o.Waiting == nil {
		o.Waiting = func(string, error) {}
	}
	if o.Commit == nil {
		o.Commit = commitWithoutCommands(o.Log)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Consumer{o: o, ctx: ctx, logger: o.Logger.With("source", o.Source, "topic", o.Topic),
		appliers: map[int32]*applier{}}, nil
}

// Source returns the owner of the topic.
func (c *Consumer) Source() string { return c.o.Source }

// Topic returns the name of the topic.
func (c *Consumer) Topic() string { return c.o.Topic }

// Handle is a handler for a router. It returns once the checkpoint of the record's partition has reached the record,
// with an error if the event failed. If the applier ends first, the error wraps retry.ErrUnavailable. The
// subscriber must keep the order within partitions (bus.SubscriberOptions.InOrder).
func (c *Consumer) Handle(m *message.Message) error {
	e, err := envelope.ReadEvent(m)
	if err != nil {
		return retry.Permanent(err) // the field Before of the partition's next record shows that an event is missing
	}
	partition, ok := bus.PartitionOf(m.Context())
	claim, claimed := bus.ClaimOf(m.Context())
	if !ok || !claimed {
		return retry.Permanent(errors.New("the message was not delivered by a bus.Subscriber"))
	}
	d := &delivery{event: e, trace: m.Context(), done: make(chan error, 1)}
	c.applierOf(partition, claim).put(d)
	bus.Release(m) // from here on, the applier's queue keeps the order
	return <-d.done
}

// applierOf returns the applier of a claim. If the partition is assigned again, or its applier has ended, the partition
// gets a new applier, which reads the checkpoint.
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

// Wait returns when all appliers have ended. No message may arrive after the call.
func (c *Consumer) Wait() { c.running.Wait() }

// CatchUp makes the partitions that this instance consumes read the owner's log up to an event that the topic did not
// deliver. It returns without waiting. A partition whose checkpoint has reached the event reads nothing.
func (c *Consumer) CatchUp(e envelope.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.appliers {
		a.catchUp(e.Position)
	}
}

// retryUnavailable calls the function try, and repeats the call for as long as Postgres or the owner is unavailable. It
// gives up when the channel over is closed, or when nothing may be committed any more.
func (c *Consumer) retryUnavailable(over <-chan struct{}, try func() error) error {
	unavailable := ""
	defer func() {
		if unavailable != "" {
			c.o.Waiting(unavailable, nil)
		}
	}()
	for delay := (retry.Backoff{First: firstPause}); ; {
		err := try()
		var elsewhere *unavailableError
		if !errors.As(err, &elsewhere) && !errors.Is(err, retry.ErrUnavailable) {
			return err
		}
		now := "postgres"
		if elsewhere != nil {
			now = elsewhere.service
		}
		if unavailable != "" && unavailable != now {
			c.o.Waiting(unavailable, nil) // the wait for this dependency is over; the attempt failed because of another one
		}
		unavailable = now
		c.o.Waiting(unavailable, err)
		if !pause(c.ctx, over, delay.Next()) {
			return err
		}
	}
}

// pause waits for the duration d. It returns false if ctx ends, or if the channel over is closed, before this time has
// passed.
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

// unavailableError reports that another service does not respond.
type unavailableError struct {
	service string
	err     error
}

func (e *unavailableError) Error() string { return e.service + " does not respond: " + e.err.Error() }

func (e *unavailableError) Unwrap() error { return e.err }

package consume

import (
	"context"
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
)

// aboveAll is above every position. A page of the log that begins there contains no events, only the log's head.
const aboveAll = int64(1) << 62

// begin loads or creates the checkpoint of the partition. The parameter first is the first record that has arrived from
// the partition.
func (a *applier) begin(first envelope.Event) (err error) {
	if a.consumer, err = a.beginConsumer(a.calls, a.claim.Done(), first); err != nil {
		return a.failed("begin with", err)
	}
	var checkpoints map[int32]inbox.Checkpoint
	err = a.retryUnavailable(a.claim.Done(), func() (err error) {
		checkpoints, err = a.o.Log.Inbox().Checkpoints(a.ctx, a.of.Source, a.of.Topic)
		return err
	})
	if err != nil {
		return a.failed("begin with", err)
	}
	saved, ok := checkpoints[a.of.Partition]
	if !ok {
		if saved, err = a.beginPartition(first); err != nil {
			return a.failed("begin with", err)
		}
	}
	a.saved, a.readUpTo, a.incarnation = saved, saved.Position, saved.Incarnation
	if err := a.reload(); err != nil {
		return a.failed("begin with", err)
	}
	a.logger.Debug("consuming a partition from its checkpoint", "partition", a.of.Partition, "position", a.readUpTo)
	return nil
}

// beginPartition creates the first checkpoint of a partition. The checkpoint is at the position from which the topic is
// consumed. If the partition was added later, and the fence before its first epoch is higher, the checkpoint is at that
// fence.
func (a *applier) beginPartition(first envelope.Event) (saved inbox.Checkpoint, err error) {
	c := inbox.Checkpoint{Position: a.consumer.Start, Epoch: a.consumer.Epoch, Partitions: a.consumer.Partitions}
	for c.Partitions <= a.of.Partition {
		if first.Epoch <= c.Epoch {
			return c, fmt.Errorf("the topic has %d partitions", c.Partitions)
		}
		f, err := a.fence(c, first)
		if err != nil {
			return c, err
		}
		if err := a.awaitOldPartitions(c, f); err != nil {
			return c, err
		}
		c.Position, c.Epoch, c.Partitions = max(c.Position, f.Position), f.To, f.Partitions
	}
	err = a.retryUnavailable(a.claim.Done(), func() (err error) {
		saved, err = a.o.Log.Inbox().BeginPartition(a.ctx, a.of, c)
		return err
	})
	return saved, err
}

// beginConsumer returns the start of the topic's consumption. If none is stored yet, it finds and stores the start. It
// also parks the streams of the events that an earlier release had parked (see takeOver).
func (c *Consumer) beginConsumer(ctx context.Context, over <-chan struct{}, first envelope.Event) (inbox.Consumer, error) {
	c.mu.Lock()
	begun := c.begun
	c.mu.Unlock()
	if begun != nil {
		return *begun, nil
	}
	var found inbox.Consumer
	err := c.retryUnavailable(over, func() (err error) {
		var ok bool
		if found, ok, err = c.o.Log.Inbox().Consumer(ctx, c.o.Source, c.o.Topic); err != nil || ok {
			return err
		}
		n := inbox.Consumer{Source: c.o.Source, Topic: c.o.Topic, Epoch: first.Epoch, Partitions: first.Partitions}
		if n.Partitions == 0 {
			n.Partitions = c.o.Partitions
		}
		if err := c.findStart(ctx, &n); err != nil {
			return err
		}
		found, err = c.o.Log.Inbox().BeginConsumer(ctx, n)
		return err
	})
	if err != nil {
		return found, err
	}
	if err := c.retryUnavailable(over, func() error { return c.takeOver(ctx, found) }); err != nil {
		return found, err
	}
	c.logger.Info("consuming the topic", "start", found.Start, "since", found.Since)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = &found
	return found, nil
}

// findStart sets n.Start, the position from which a topic is consumed: the position that an earlier release has
// reached, or else the position of Options.Since. It also sets n.LegacyEnd in the first case, and n.Since for FromTime.
func (c *Consumer) findStart(ctx context.Context, n *inbox.Consumer) error {
	position, found, err := c.o.Log.Inbox().LegacyPosition(ctx, c.o.Source, c.o.Topic)
	if err != nil {
		return err
	}
	head, err := c.page(ctx, &meshv1.ReadLogRequest{After: aboveAll, Limit: 1})
	switch {
	case err != nil:
		return err
	case found:
		n.Start, n.LegacyEnd = position, catalog.Position(head.GetHead())
		return nil
	}
	switch c.o.Since.kind {
	case sinceNow:
		n.Start = catalog.Position(head.GetHead())
	case sinceTime:
		n.Since = c.o.Since.at.UTC()
		n.Start, err = c.lastBefore(ctx, n.Since, catalog.Position(head.GetHead()))
	}
	return err
}

// lastBefore finds a position above which nearly all events are at or after a time. Some may be older, because clocks
// differ, so isOld also checks the time of each event.
func (c *Consumer) lastBefore(ctx context.Context, t time.Time, head catalog.Position) (catalog.Position, error) {
	// The event at position low (0: no event) is before t. If no clock was wrong, all events above position high are at
	// or after t.
	low, high := catalog.Position(0), head
	for low < high {
		middle := low + (high-low)/2
		page, err := c.page(ctx, &meshv1.ReadLogRequest{After: int64(middle), Limit: 1})
		if err != nil {
			return 0, err
		}
		if len(page.GetRecords()) == 0 {
			high = middle
			continue
		}
		e, err := envelope.ReadRecord(page.GetRecords()[0])
		if err != nil {
			return 0, err
		}
		if e.Time.Before(t) {
			low = e.Position
		} else {
			high = middle
		}
	}
	return low, nil
}

// takeOver parks the streams of the events that an earlier release had parked. It does not delete the versions that the
// earlier release stored. The partitions of this topic need these versions for events up to LegacyEnd, and so does any
// other topic of the source that is consumed for the first time later.
func (c *Consumer) takeOver(ctx context.Context, n inbox.Consumer) error {
	if n.LegacyEnd == 0 {
		return nil
	}
	return c.o.Log.Inbox().ImportParked(ctx, c.o.Source, func(r *meshv1.Record) (position, passed catalog.Position, err error) {
		e, err := envelope.ReadRecord(r)
		return e.Position, n.Start, err
	})
}

// loadLegacyVersions reads, for the stream of each event, the last version that an earlier release applied. It skips
// events above LegacyEnd, which no earlier release has applied.
func (a *applier) loadLegacyVersions(events []envelope.Event) error {
	var streams []string
	seen := map[string]bool{}
	for _, e := range events {
		if e.Position <= a.consumer.LegacyEnd && !e.IsPosition() && !seen[e.Stream] {
			seen[e.Stream] = true
			streams = append(streams, e.Stream)
		}
	}
	if len(streams) == 0 {
		a.legacyVersions = nil
		return nil
	}
	return a.retryUnavailable(a.claim.Done(), func() (err error) {
		a.legacyVersions, err = a.o.Log.Inbox().LegacyVersions(a.ctx, a.of.Source, streams)
		return err
	})
}

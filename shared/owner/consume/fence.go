package consume

import (
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
)

// When a topic gets more partitions, some streams move to other partitions: the new count determines the partitions of
// events above the fence. No partition applies an event above the fence before the checkpoints of all old partitions
// have reached the fence. So the events of a stream that moves stay in order.

// awaitEvery is how often the checkpoints of other partitions are read.
const awaitEvery = 100 * time.Millisecond

// crossFence advances the partition to the epoch of a record, across all fences in between.
func (a *applier) crossFence(e envelope.Event) error {
	for e.Epoch > a.saved.Epoch {
		f, err := a.fence(a.saved, e)
		if err != nil {
			return a.failed("find the fence of", err)
		}
		if f.Position > a.readUpTo {
			if err := a.fill(f.Position); err != nil {
				return err
			}
		}
		if err := a.write(a.checkpoint(a.readUpTo, 0)); err != nil {
			return err
		}
		if err := a.awaitOldPartitions(a.saved, f); err != nil {
			return a.failed("cross the fence of", err)
		}
		to := a.checkpoint(a.readUpTo, 0)
		to.Epoch, to.Partitions = f.To, f.Partitions
		if err := a.write(to); err != nil {
			return err
		}
		a.logger.Info("the partition count of the topic has changed", "partition", a.of.Partition,
			"position", f.Position, "epoch", f.To, "partitions", f.Partitions)
	}
	return nil
}

// fence returns the fence at which the epoch of a checkpoint ends. The parameter e is the first record of a later epoch
// that has arrived from the partition. The first partition that calls fence saves the position, and all partitions use
// the saved position. If e is not the fence itself, the topic no longer contains the fence. Then the position of the
// record before e, which is not below the fence, is saved instead.
func (a *applier) fence(c inbox.Checkpoint, e envelope.Event) (found inbox.Fence, err error) {
	own := inbox.Fence{From: c.Epoch, To: e.Epoch, Position: e.Before, Partitions: e.Partitions}
	if e.Fence {
		own.Position = e.Position
	}
	err = a.retryUnavailable(a.claim.Done(), func() error {
		if err := a.o.Log.Inbox().AddFence(a.ctx, a.of.Source, a.of.Topic, own); err != nil {
			return err
		}
		all, err := a.o.Log.Inbox().Fences(a.ctx, a.of.Source, a.of.Topic)
		if err != nil {
			return err
		}
		for _, f := range all {
			if f.From == c.Epoch {
				found = f
				return nil
			}
		}
		return fmt.Errorf("the fence after epoch %d is not saved", c.Epoch)
	})
	return found, err
}

// awaitOldPartitions waits for the partitions of the epoch that ends at a fence, until all their checkpoints have
// reached the fence.
func (a *applier) awaitOldPartitions(old inbox.Checkpoint, f inbox.Fence) error {
	for n := 0; ; n++ {
		var all map[int32]inbox.Checkpoint
		err := a.retryUnavailable(a.claim.Done(), func() (err error) {
			all, err = a.o.Log.Inbox().Checkpoints(a.ctx, a.of.Source, a.of.Topic)
			return err
		})
		if err != nil {
			return err
		}
		if allPassed(all, old.Partitions, f) {
			return nil
		}
		if n == 0 {
			a.logger.Info("the partition waits until the checkpoints of the others have reached the fence",
				"partition", a.of.Partition, "position", f.Position)
		}
		if !pause(a.ctx, a.claim.Done(), awaitEvery) {
			return errReleased
		}
	}
}

// allPassed reports whether the checkpoints of the partitions 0 to count-1 have all reached or crossed a fence.
func allPassed(all map[int32]inbox.Checkpoint, count int32, f inbox.Fence) bool {
	for n := range count {
		c, ok := all[n]
		if !ok || c.Position < f.Position && c.Epoch < f.To {
			return false
		}
	}
	return true
}

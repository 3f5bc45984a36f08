package bus

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// delivery is one handing out of a record. It is the context of its message.
type delivery struct {
	context.Context // of the partition's messages

	group  string // on the broker; empty for a Reader
	record Record
	over   <-chan struct{} // closed when no time is left for what can as well be done after a restart

	lanes *lanes // whence it comes; nil for a Reader
	held  *held
	free  bool // the lane need not wait for it any more; guarded by lanes.mu
}

type deliveryKey struct{}

func (d *delivery) Value(key any) any {
	if key == (deliveryKey{}) {
		return d
	}
	return d.Context.Value(key)
}

func deliveryOf(ctx context.Context) (*delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*delivery)
	return d, ok
}

// TopicOf returns the topic of a consumed message from its context, without the installation's prefix.
func TopicOf(ctx context.Context) (string, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Topic, true
	}
	return "", false
}

// PartitionOf returns the partition of a consumed message from its context.
func PartitionOf(ctx context.Context) (int32, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Partition, true
	}
	return 0, false
}

// OffsetOf returns the offset of a consumed message from its context.
func OffsetOf(ctx context.Context) (int64, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Offset, true
	}
	return 0, false
}

// ClaimOf returns the assignment by which a Subscriber has a consumed message, from the message's context. It is false
// for messages of others.
func ClaimOf(ctx context.Context) (*Claim, bool) {
	if d, ok := deliveryOf(ctx); ok && d.lanes != nil {
		return d.lanes.claim, true
	}
	return nil, false
}

// Claim is one assignment of a partition to a Subscriber. The same partition assigned again is another Claim, and so is
// a partition that is read again from its oldest record because it has lost some.
type Claim struct {
	Topic     string // without the installation's prefix
	Partition int32

	done chan struct{}
}

// Done is closed when the partition goes elsewhere or the Subscriber stops. Messages in flight then still have the
// Subscriber's Drain to be acknowledged.
func (c *Claim) Done() <-chan struct{} { return c.done }

// overOf is closed when the subscriber of a message lets it go: it stops, or its partition goes elsewhere.
func overOf(ctx context.Context) <-chan struct{} {
	if d, ok := deliveryOf(ctx); ok {
		return d.over
	}
	return nil
}

// Release says that a message's place among those of its key is settled, as it was queued in its order: its lane hands
// over the next one, although this one is not acknowledged yet. The offset still waits for it. Once released it may be
// released again, to no effect; so may messages of other subscribers.
func Release(m *message.Message) {
	if d, ok := deliveryOf(m.Context()); ok && d.lanes != nil {
		d.lanes.release(d)
	}
}

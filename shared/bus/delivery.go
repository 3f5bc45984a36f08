package bus

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// delivery is one attempt to deliver a record. It is also the context of the record's message.
type delivery struct {
	context.Context // ends with the delivery

	group  string // consumer group on the broker; empty for a Reader
	record Record
	over   <-chan struct{} // for a Subscriber, the claim's Done; for a Reader, closed when the subscription ends

	lanes *lanes // nil for a Reader
	held  *openRecord
	free  bool // the lane does not wait for this delivery any more; guarded by lanes.mu
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

// ClaimOf returns the partition assignment under which a Subscriber delivered a message, from the message's context.
// It returns false if the message was not delivered by a Subscriber.
func ClaimOf(ctx context.Context) (*Claim, bool) {
	if d, ok := deliveryOf(ctx); ok && d.lanes != nil {
		return d.lanes.claim, true
	}
	return nil, false
}

// Claim is one assignment of a partition to a Subscriber. A partition gets a new Claim when it is assigned again, and
// when it is read again from its oldest record because the topic has lost records.
type Claim struct {
	Topic     string // without the installation's prefix
	Partition int32

	done chan struct{}
}

// Done returns a channel that is closed when the claim ends: the partition is reassigned, the Subscriber stops, or the
// topic has lost records. Messages in flight can still be acknowledged within SubscriberOptions.Drain.
func (c *Claim) Done() <-chan struct{} { return c.done }

// overOf returns delivery.over of the delivery in a message's context; nil if the context has no delivery.
func overOf(ctx context.Context) <-chan struct{} {
	if d, ok := deliveryOf(ctx); ok {
		return d.over
	}
	return nil
}

// Release lets the lane of a message deliver the next message before this message is acknowledged. A handler calls it
// when the order of the key's messages no longer depends on the lane, for example because the handler has queued this
// message. The committed offset still waits for the acknowledgment. Releasing a message again, or a message that was
// not delivered by a Subscriber, has no effect.
func Release(m *message.Message) {
	if d, ok := deliveryOf(m.Context()); ok && d.lanes != nil {
		d.lanes.release(d)
	}
}

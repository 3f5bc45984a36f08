package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// delivery is one handing out of a record. The context of its message carries it.
type delivery struct {
	topic  string // without the installation's prefix
	group  string // on the broker; empty for a Reader
	record *sarama.ConsumerMessage
	over   <-chan struct{} // closed when no time is left for what can as well be done after a restart

	lanes *lanes // whence it comes; nil for a Reader
	held  *held
	free  bool // the lane need not wait for it any more; guarded by lanes.mu
}

type deliveryKey struct{}

func deliveryOf(ctx context.Context) (*delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*delivery)
	return d, ok
}

// message is the delivery as Watermill carries it: payload and headers as they are, whatever bytes they are.
func (d *delivery) message(ctx context.Context) *message.Message {
	m, err := kafka.DefaultMarshaler{}.Unmarshal(d.record)
	if err != nil {
		// It never fails today. Should it one day, the record must not hold up its partition all the same.
		m = message.NewMessage("", d.record.Value)
	}
	if m.UUID == "" {
		m.UUID = fmt.Sprintf("%s/%d/%d", d.topic, d.record.Partition, d.record.Offset)
	}
	if len(d.record.Key) > 0 {
		m.Metadata.Set(MetadataKey, string(d.record.Key))
	}
	m.SetContext(context.WithValue(ctx, deliveryKey{}, d))
	return m
}

// TopicOf tells the topic of a consumed message from its context, without the installation's prefix.
func TopicOf(ctx context.Context) (string, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.topic, true
	}
	return "", false
}

// PartitionOf tells the partition of a consumed message from its context.
func PartitionOf(ctx context.Context) (int32, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Partition, true
	}
	return 0, false
}

// OffsetOf tells the offset of a consumed message from its context.
func OffsetOf(ctx context.Context) (int64, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Offset, true
	}
	return 0, false
}

// KeyOf tells the Kafka key of a consumed message from its context.
func KeyOf(ctx context.Context) ([]byte, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Key, true
	}
	return nil, false
}

// TimeOf tells when a consumed message was produced from its context.
func TimeOf(ctx context.Context) (time.Time, bool) {
	if d, ok := deliveryOf(ctx); ok {
		return d.record.Timestamp, true
	}
	return time.Time{}, false
}

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

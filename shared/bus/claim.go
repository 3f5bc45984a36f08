package bus

import (
	"context"
	"log/slog"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
)

// stallAfter is how long a full window keeps a claim from reading on. Then its partition is paused instead and what
// sarama has already fetched is read, because only the end of that tells when the partition goes elsewhere.
const stallAfter = 250 * time.Millisecond

// claims consumes the partitions that a member of the group was given. With the cooperative strategy one session lasts
// over rebalances: what stays goes on, and what goes ends here by its closed channel.
type claims struct {
	topic, group string // the topic without its prefix
	member       sarama.ConsumerGroup
	options      SubscriberOptions
	out          chan<- *message.Message
	values       context.Context // of whoever subscribed, without its end
	log          *slog.Logger
}

// Setup and Cleanup are part of sarama's interface.
func (c *claims) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (c *claims) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim reads a partition until it goes elsewhere or the session ends. What is in flight then is waited for.
func (c *claims) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	at := map[string][]int32{claim.Topic(): {claim.Partition()}}
	log := c.log.With("partition", claim.Partition())
	lanes := newLanes(c.values, c.topic, c.group, c.options, c.out, func(next int64) {
		session.MarkOffset(claim.Topic(), claim.Partition(), next, "")
	})
	defer lanes.stop(c.options.Drain)
	log.Debug("partition is read", "offset", claim.InitialOffset())
	// Sarama keeps what an earlier claim has paused.
	c.member.Resume(at)

	begun, paused := false, false
	stalled := time.NewTimer(stallAfter)
	defer stalled.Stop()
	for {
		records := claim.Messages()
		var stall <-chan time.Time
		if !paused && lanes.full() {
			records, stall = nil, stalled.C
			stalled.Reset(stallAfter)
		}
		select {
		case r, ok := <-records:
			if !ok {
				log.Debug("partition is let go")
				return nil
			}
			if !begun {
				c.begin(session, claim, r.Offset)
				begun = true
			}
			lanes.add(r)
		case <-lanes.room:
			if paused && lanes.idle() {
				c.member.Resume(at)
				paused = false
			}
		case <-stall:
			c.member.Pause(at)
			paused = true
		case <-session.Context().Done():
			return nil
		}
	}
}

// begin looks at where a claim begins. Without an offset of the group, or with one that the topic does not reach any
// more, that is the oldest record, and no offset above it may be remembered: marks only go up.
func (c *claims) begin(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim, first int64) {
	if claim.InitialOffset() >= 0 {
		return
	}
	session.ResetOffset(claim.Topic(), claim.Partition(), first, "")
	c.log.Debug("the group has no offset here that the topic reaches: begins with the oldest record",
		"partition", claim.Partition(), "offset", first)
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/backend"
)

// SubscriberOptions of a Subscriber. Zero values are the defaults.
type SubscriberOptions struct {
	// Group is the base name of the consumer groups, usually the service's: of each topic it is "<prefix><Group>.<topic>".
	Group string
	// Window is how far a partition runs ahead of its watermark, in records; 512.
	Window int
	// InstanceID makes the member a static one: started again under the same name, after whatever end, it has its
	// partitions at once instead of after SessionTimeout. Two at a time fence each other.
	InstanceID string
	// SessionTimeout is after how long without a sign of life the others take the partitions of a member; 6 s, which is
	// the least that brokers allow by default.
	SessionTimeout time.Duration
	// Drain is how long messages in flight are waited for when their partition goes elsewhere, and at the end; 10 s.
	// Then their contexts end. It has to be well below 25 s, at which the group goes on without this member.
	Drain time.Duration
	// Backoff is the pause before a message that was not acknowledged comes again, at first; 100 ms. It doubles up to
	// 50 times that.
	Backoff time.Duration
	Log     *slog.Logger
}

func (o *SubscriberOptions) setDefaults() {
	if o.Window == 0 {
		o.Window = 512
	}
	if o.SessionTimeout == 0 {
		o.SessionTimeout = 6 * time.Second
	}
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	if o.Backoff == 0 {
		o.Backoff = firstPause
	}
	o.Log = logger(o.Log)
}

const rebalanceTimeout = 25 * time.Second // below the request time-out: a join waits that long for its answer

// Subscriber is Watermill's Subscriber on a Kafka consumer group, in key lanes. A new group begins with the oldest
// record.
type Subscriber struct {
	kafka   backend.Kafka
	options SubscriberOptions
	config  *sarama.Config
	subscriptions
}

// NewSubscriber makes a Subscriber. It connects when something is subscribed to.
func NewSubscriber(k backend.Kafka, o SubscriberOptions) (*Subscriber, error) {
	if o.Group == "" {
		return nil, errors.New("subscriber: no group is named")
	}
	o.setDefaults()
	if o.Window < 0 || o.Drain < 0 || o.Backoff < 0 || o.Drain >= rebalanceTimeout {
		return nil, fmt.Errorf("subscriber of group %s: window, drain or back-off is out of range", o.Group)
	}
	c := consumerConfig(k)
	c.Consumer.Group.Rebalance.Timeout = rebalanceTimeout
	c.Consumer.Group.Rebalance.Retry.Max = 30
	c.Consumer.Group.Rebalance.Retry.Backoff = 100 * time.Millisecond
	c.Consumer.Group.Session.Timeout = o.SessionTimeout
	c.Consumer.Group.Heartbeat.Interval = min(time.Second, o.SessionTimeout/6)
	c.Consumer.Group.InstanceId = o.InstanceID
	s := &Subscriber{kafka: k, options: o, config: c, subscriptions: newSubscriptions()}
	if err := s.memberConfig().Validate(); err != nil {
		return nil, fmt.Errorf("subscriber of group %s: %w", o.Group, err)
	}
	return s, nil
}

// memberConfig is that of one member of one group. The strategy is its own: sarama's remembers plans, unguarded.
func (s *Subscriber) memberConfig() *sarama.Config {
	c := *s.config
	c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	return &c
}

// consumerConfig is what Subscriber and Reader have in common.
func consumerConfig(k backend.Kafka) *sarama.Config {
	c := k.SaramaConfig()
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Return.Errors = true
	c.Consumer.Retry.Backoff = 250 * time.Millisecond
	// A broker answers the requests of a connection in turn, so a fetch that waits for records holds up all others: a
	// join, or finding the offsets of further partitions.
	c.Consumer.MaxWaitTime = 200 * time.Millisecond
	return c
}

// Subscribe consumes a topic until ctx ends or the Subscriber is closed, whatever happens to the brokers meanwhile.
// Messages' contexts have the values of ctx, but outlast it: first what is in flight is waited for.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	err := s.begin(ctx, func(ctx context.Context) {
		defer close(out)
		s.run(ctx, topic, out)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	return out, nil
}

// run is a member of the topic's group until ctx ends.
func (s *Subscriber) run(ctx context.Context, topic string, out chan<- *message.Message) {
	group := s.kafka.Topic(s.options.Group + "." + topic)
	log := s.options.Log.With("topic", topic, "group", group)
	trouble := newGrumble(log)
	again := backoff{first: firstPause}
	for ctx.Err() == nil {
		begun := time.Now()
		err := s.join(ctx, group, &claims{topic: topic, group: group, options: s.options, out: out,
			values: context.WithoutCancel(ctx), log: log})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			trouble.warn("does not consume, trying again", err)
		}
		if time.Since(begun) > 5*time.Second {
			again.tries = 0
		}
		sleep(again.next(), ctx.Done(), nil)
	}
}

// join is a member until it is thrown out, something fails or ctx ends.
func (s *Subscriber) join(ctx context.Context, group string, c *claims) error {
	member, err := sarama.NewConsumerGroup(s.kafka.Brokers, group, s.memberConfig())
	if err != nil {
		return err
	}
	var reporting sync.WaitGroup
	reporting.Go(func() {
		trouble := newGrumble(c.log)
		for err := range member.Errors() {
			trouble.warn("consumer group", err)
		}
	})
	c.member = member
	err = member.Consume(ctx, []string{s.kafka.Topic(c.topic)}, c)
	if closing := member.Close(); err == nil && closing != nil && ctx.Err() == nil {
		err = fmt.Errorf("leave the group: %w", closing)
	}
	reporting.Wait()
	return err
}

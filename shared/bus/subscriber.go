package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/backend"
)

// SubscriberOptions configure a Subscriber. A zero value stands for the default.
type SubscriberOptions struct {
	// Group is the base name of the consumer groups, usually the service's name. The group of a topic is
	// "<prefix><Group>.<topic>".
	Group string
	// Window is the maximum number of records between a partition's watermark and its newest record in flight; default
	// 512.
	Window int
	// InOrder delivers a partition's records in one lane instead of one lane for each key. A handler that collects
	// messages into batches releases each message (see Release) when it adds the message to a batch, and acknowledges
	// all messages of the batch when it has processed the batch.
	InOrder bool
	// Gather is how long records accumulate at the broker before more of them are fetched; default 0. The Subscriber
	// does not wait when it has fallen behind. With 0 there is a fetch for every few records, which costs the broker
	// and this process CPU time. A record is delayed by up to twice Gather, because it waits at the broker and then in
	// the client. Use 0 if users wait for the consumer.
	Gather time.Duration
	// InstanceID makes this process a static member of its groups: when it is restarted with the same InstanceID, it
	// gets its partitions at once instead of after SessionTimeout. Two processes must not have the same InstanceID,
	// because the broker excludes one of them from the group.
	InstanceID string
	// SessionTimeout is how long a member may send no heartbeat before other members get its partitions; default 6 s,
	// the minimum that brokers allow by default.
	SessionTimeout time.Duration
	// Drain is how long the Subscriber waits for messages in flight when their Claim ends; default 10 s. Then the
	// contexts of these messages end. Drain must be well below 25 s, the rebalance timeout, after which the group
	// continues without this member.
	Drain time.Duration
	// Backoff is the first delay before a message that was not acknowledged is delivered again; default 100 ms. Later
	// delays double, up to 50 times the first one.
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

// Subscriber is Watermill's Subscriber on a Kafka consumer group. It delivers messages in key lanes (see the package
// comment). A new group begins with the oldest record of each partition. If a partition no longer has the record at the
// group's offset, the Subscriber logs a warning and continues with the partition's oldest record.
//
// A message's payload is part of the buffer of a whole fetch: clone the payload to keep it after the message is
// acknowledged. The message's metadata are copies.
type Subscriber struct {
	kafka   backend.Kafka
	options SubscriberOptions
	subscriptions
}

// NewSubscriber returns a Subscriber, which connects when a topic is subscribed to.
func NewSubscriber(k backend.Kafka, o SubscriberOptions) (*Subscriber, error) {
	if o.Group == "" {
		return nil, errors.New("subscriber: Group is empty")
	}
	o.setDefaults()
	wrong := func(what string) (*Subscriber, error) {
		return nil, fmt.Errorf("subscriber of group %s: %s", o.Group, what)
	}
	switch {
	case len(k.Brokers) == 0:
		return wrong("no brokers are configured")
	case o.Window < 0 || o.Gather < 0 || o.Drain < 0 || o.Backoff < 0 || o.Drain >= rebalanceTimeout:
		return wrong("window, gather, drain or back-off is out of range")
	case !instanceIDs.MatchString(o.InstanceID):
		return wrong("the instance id may have up to 249 letters, digits, dots, dashes and underscores")
	}
	return &Subscriber{kafka: k, options: o, subscriptions: newSubscriptions()}, nil
}

// instanceIDs matches the instance ids that brokers accept.
var instanceIDs = regexp.MustCompile(`^[a-zA-Z0-9._-]{0,249}$`)

// Subscribe consumes a topic until ctx ends or the Subscriber is closed. It continues after any failure of the
// brokers. The contexts of messages have the values of ctx, but do not end with ctx, so that the handlers of messages
// in flight can finish.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	made := make(chan error, 1)
	// The goroutine that runs the member also creates it. A member joins its group when it is created. If begin then
	// refused to run the member, the partitions of this member would not be consumed.
	err := s.begin(ctx, func(ctx context.Context) {
		defer close(out)
		m, err := newMember(s.kafka, topic, s.options, ctx, out)
		if made <- err; err == nil {
			m.run(ctx)
		}
	})
	if err == nil {
		err = <-made
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	return out, nil
}

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

// SubscriberOptions of a Subscriber. Zero values are the defaults.
type SubscriberOptions struct {
	// Group is the base name of the consumer groups, usually the service's: of each topic it is "<prefix><Group>.<topic>".
	Group string
	// Window is how far a partition runs ahead of its watermark, in records; 512.
	Window int
	// InOrder hands out a partition's records in one lane instead of one for each key. A consumer that batches them
	// releases each message (see Release) as it queues it, and acknowledges it with its batch.
	InOrder bool
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

// Subscriber is Watermill's Subscriber on a Kafka consumer group, in key lanes. A new group begins with the oldest
// record. So does one whose offset the topic does not have any more, and logs it.
//
// A message's payload belongs to the buffer of a whole fetch: whoever keeps it for longer than the message is in hand
// clones it. Its metadata are copies.
type Subscriber struct {
	kafka   backend.Kafka
	options SubscriberOptions
	subscriptions
}

// NewSubscriber makes a Subscriber. It connects when something is subscribed to.
func NewSubscriber(k backend.Kafka, o SubscriberOptions) (*Subscriber, error) {
	if o.Group == "" {
		return nil, errors.New("subscriber: no group is named")
	}
	o.setDefaults()
	wrong := func(what string) (*Subscriber, error) {
		return nil, fmt.Errorf("subscriber of group %s: %s", o.Group, what)
	}
	switch {
	case len(k.Brokers) == 0:
		return wrong("no broker is named")
	case o.Window < 0 || o.Drain < 0 || o.Backoff < 0 || o.Drain >= rebalanceTimeout:
		return wrong("window, drain or back-off is out of range")
	case !instanceIDs.MatchString(o.InstanceID):
		return wrong("the instance id may have up to 249 letters, digits, dots, dashes and underscores")
	}
	return &Subscriber{kafka: k, options: o, subscriptions: newSubscriptions()}, nil
}

// instanceIDs are what brokers take as one.
var instanceIDs = regexp.MustCompile(`^[a-zA-Z0-9._-]{0,249}$`)

// Subscribe consumes a topic until ctx ends or the Subscriber is closed, whatever happens to the brokers meanwhile.
// Messages' contexts have the values of ctx, but outlast it: first what is in flight is waited for.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	made := make(chan error, 1)
	// The member is made where it is run: one that is made joins the group, and waits for its partitions to be taken.
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

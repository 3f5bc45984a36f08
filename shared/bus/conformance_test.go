package bus_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
)

// The tests of this file run Watermill's published Pub/Sub suite on the embedded broker and, if integration tests are
// enabled, on Apache Kafka. They leave out these tests of the suite:
//   - TestReconnect, which restarts the broker by a shell command: TestReader_SurvivesARestartOfTheBroker and
//     TestSubscriber_SurvivesARestartOfTheBroker restart the embedded broker in this process instead;
//   - TestConsumerGroups for the Reader, which does not use consumer groups;
//   - TestNewSubscriberReceivesOldMessages for the Subscriber, because in a group every message goes to one member (the
//     Reader passes this test);
//   - the check at the end of TestNoAck that nothing is delivered twice: the suite skips it without
//     ExactlyOnceDelivery, which Kafka does not promise.
//
// The suite's messages have no keys, while this package promises order only per key. So byPayload uses each message's
// payload as its key. This is enough, because the suite sorts messages by payload before it compares their order.

func TestConformance_Subscriber(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		group := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
			// Backoff is short, because the suite nacks hundreds of messages. Drain is short, because the suite closes
			// subscribers while some of their messages are unsettled.
			s, err := bus.NewSubscriber(k, bus.SubscriberOptions{Group: group, Drain: 100 * time.Millisecond,
				Backoff: 100 * time.Microsecond})
			require.NoError(t, err)
			return byPayload{publisher(t, k)}, initialized{t, k, s}
		}
		tests.TestPubSub(t, tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true,
			ForceShort: testing.Short()},
			func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, "conformance") }, group)
	})
}

func TestConformance_Reader(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		tests.TestPubSub(t, tests.Features{GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true,
			Persistent: true, NewSubscriberReceivesOldMessages: true,
			ForceShort: true}, // the long variant makes the same checks, with fifty readers of 5,000 messages
			func(t *testing.T) (message.Publisher, message.Subscriber) {
				r, err := bus.NewReader(k, bus.ReaderOptions{Drain: 100 * time.Millisecond, Backoff: 100 * time.Microsecond,
					From: func(_ string, _ int32, oldest, _ int64) int64 { return oldest }})
				require.NoError(t, err)
				return byPayload{publisher(t, k)}, initialized{t, k, r}
			}, nil)
	})
}

// byPayload is a publisher that uses the payload of each message as its key.
type byPayload struct{ message.Publisher }

func (p byPayload) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		m.Metadata.Set(bus.MetadataKey, string(m.Payload))
	}
	return p.Publisher.Publish(topic, messages...)
}

// initialized is a subscriber that creates a topic before the suite subscribes to it, because brokers of the mesh do
// not create topics on demand.
type initialized struct {
	t *testing.T
	k backend.Kafka
	message.Subscriber
}

func (s initialized) SubscribeInitialize(topic string) error {
	createTopic(s.t, s.k, topic, 3)
	return nil
}

package bus_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func publish(t testing.TB, p message.Publisher, topic string, messages ...*message.Message) {
	t.Helper()
	require.NoError(t, p.Publish(topic, messages...))
}

func TestSubscriber_HoldsBackOnlyMessagesOfTheSameKey(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"), keyed("b", "0"))
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")

	first := map[string]*message.Message{}
	for range 2 {
		m := receive(t, messages)
		first[m.Metadata.Get(bus.MetadataKey)] = m
	}
	require.Equal(t, "0", string(first["a"].Payload))
	require.Equal(t, "0", string(first["b"].Payload))
	nothing(t, messages)
	first["a"].Ack()
	second := receive(t, messages)
	require.Equal(t, "a", second.Metadata.Get(bus.MetadataKey))
	require.Equal(t, "1", string(second.Payload))
}

func TestSubscriber_KeepsTheOrderOfMessagesWithoutAKey(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", message.NewMessage("1", nil), message.NewMessage("2", nil))
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
	m := receive(t, messages)
	require.Equal(t, "1", m.UUID)
	nothing(t, messages)
	m.Ack()
	require.Equal(t, "2", receive(t, messages).UUID)
}

func TestSubscriber_ProvidesTopicPartitionAndOffset(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 3)
	p := publisher(t, k)
	publishTo(t, p, "topic", 2, keyed("a", "0"), keyed("b", "0"))
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
	for range 2 {
		m := receive(t, messages)
		ctx, key := m.Context(), m.Metadata.Get(bus.MetadataKey)
		topic, _ := bus.TopicOf(ctx)
		partition, _ := bus.PartitionOf(ctx)
		offset, _ := bus.OffsetOf(ctx)
		require.Equal(t, "topic", topic)
		require.EqualValues(t, 2, partition)
		require.Equal(t, map[string]int64{"a": 0, "b": 1}[key], offset)
	}
	_, ok := bus.OffsetOf(context.Background())
	require.False(t, ok)
}

func TestRelease_DeliversTheNextMessageOfTheKey(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"), keyed("a", "2"))
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")

	first := receive(t, messages)
	nothing(t, messages)
	bus.Release(first)
	second := receive(t, messages)
	require.Equal(t, "1", string(second.Payload))
	bus.Release(first) // a second release of a message does not deliver the third message
	first.Ack()        // the acknowledgment of a released message does not deliver the third message either
	nothing(t, messages)
	meshtest.Eventually(t, "the first message is committed", func() bool { return committed(t, k, "topic", 0) == 1 })
	second.Ack()
	third := receive(t, messages)
	require.Equal(t, "2", string(third.Payload))

	bus.Release(message.NewMessage("foreign", nil))
}

func TestRelease_OfARefusedMessageKeepsTheOrder(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"), keyed("a", "2"))
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{Backoff: time.Millisecond}), "topic")

	first := receive(t, messages)
	bus.Release(first)
	second := receive(t, messages)
	first.Nack()
	nothing(t, messages) // the second message is still in flight, so the lane delivers no other
	bus.Release(second)
	again := receive(t, messages)
	require.Equal(t, "0", string(again.Payload), "the refused message comes before the third")
	nothing(t, messages)
	again.Ack()
	require.Equal(t, "2", string(receive(t, messages).Payload))
}

func TestSubscriber_RepeatsARefusedMessageBeforeLaterOnesOfItsLane(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"), keyed("b", "0"))
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{Backoff: 20 * time.Millisecond}), "topic")
	begun := time.Now()
	refused := 0
	for {
		m := receive(t, messages)
		switch {
		case m.Metadata.Get(bus.MetadataKey) == "b":
			m.Ack()
		case string(m.Payload) == "1":
			require.Equal(t, 4, refused)
			require.Greater(t, time.Since(begun), 3*20*time.Millisecond, "the delays grow")
			return
		case refused < 4:
			refused++
			m.Nack()
		default:
			m.Ack()
		}
	}
}

func TestSubscriber_RunsAheadOfItsWatermarkByTheWindow(t *testing.T) {
	t.Parallel()
	const window, all = 8, 2000
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	batch := []*message.Message{keyed("stuck", "0")}
	for n := range all {
		batch = append(batch, keyed(strconv.Itoa(n), "0"))
	}
	publish(t, publisher(t, k), "topic", batch...)
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{Window: window}), "topic")

	var stuck *message.Message
	for range window {
		if m := receive(t, messages); m.Metadata.Get(bus.MetadataKey) == "stuck" {
			stuck = m
		} else {
			m.Ack()
		}
	}
	nothing(t, messages)
	time.Sleep(500 * time.Millisecond) // long enough for the partition to be paused
	nothing(t, messages)
	require.LessOrEqual(t, committed(t, k, "topic", 0), int64(0), "no offset above a message in flight is committed")
	stuck.Ack()
	for n := window - 1; n < all; n++ {
		receive(t, messages).Ack()
	}
	meshtest.Eventually(t, "all offsets are committed", func() bool { return committed(t, k, "topic", 0) == all+1 })
}

// committed returns the committed offset of the group "test"; -1 if there is none.
func committed(t testing.TB, k backend.Kafka, topic string, partition int32) int64 {
	t.Helper()
	client, err := kgo.NewClient(k.Options()...)
	require.NoError(t, err)
	defer client.Close()
	got, err := kadm.NewClient(client).FetchOffsets(background, k.Topic("test."+topic))
	require.NoError(t, err)
	if own, ok := got.Lookup(k.Topic(topic), partition); ok {
		require.NoError(t, own.Err)
		return own.At
	}
	return -1
}

func TestSubscriber_WaitsForMessagesInFlightWhenItCloses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 1)
		publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"), keyed("b", "0"))
		s := subscriber(t, k, bus.SubscriberOptions{Drain: dependencyWait / 2})
		messages := subscribe(t, s, "topic")
		one, other := receive(t, messages), receive(t, messages)
		closed := make(chan struct{})
		go func() { defer close(closed); _ = s.Close() }()
		select {
		case <-closed:
			require.Fail(t, "did not wait")
		case <-time.After(200 * time.Millisecond):
		}
		require.NoError(t, one.Context().Err(), "the handler may continue")
		one.Ack()
		other.Ack()
		<-closed
		_, open := <-messages
		require.False(t, open)
		require.Error(t, one.Context().Err())
		require.EqualValues(t, 1, committed(t, k, "topic", 0), "a/1 was not delivered any more")
		_, err := s.Subscribe(context.Background(), "topic")
		require.Error(t, err)
	})
}

// Subscribe is called after Close. Subscribe must fail without connecting to the broker: a member that joined the group
// but is not run would keep partitions that nobody consumes.
func TestSubscriber_DoesNotConnectOnceItIsClosed(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var connected atomic.Int32
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connected.Add(1)
			_ = conn.Close()
		}
	}()
	s := subscriber(t, backend.Kafka{Brokers: []string{listener.Addr().String()}}, bus.SubscriberOptions{})
	require.NoError(t, s.Close())
	for range 200 {
		_, err := s.Subscribe(context.Background(), "topic")
		require.Error(t, err)
	}
	require.NoError(t, listener.Close())
	<-ended
	require.Zero(t, connected.Load())
}

func TestSubscriber_GivesUpMessagesInFlightAfterDrain(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	publish(t, publisher(t, k), "topic", keyed("a", "0"))
	s := subscriber(t, k, bus.SubscriberOptions{Drain: 50 * time.Millisecond})
	m := receive(t, subscribe(t, s, "topic"))
	require.NoError(t, s.Close())
	require.Error(t, m.Context().Err())
	m.Ack() // too late: Close has given the message up
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
	require.Equal(t, "a/0", receive(t, messages).UUID)
}

func TestSubscriber_DeliversBytesOfAnyKind(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 1)
	require.NoError(t, plain(t, k).ProduceSync(t.Context(), &kgo.Record{Topic: k.Topic("topic"), Key: []byte("\xff\x00"),
		Value: []byte("\x00\xfe\xff"), Headers: []kgo.RecordHeader{{Key: "h\xff", Value: []byte{0, 0xff}}, {Key: "empty"}}},
		&kgo.Record{Topic: k.Topic("topic")}).FirstErr()) // a record without a key, a value or headers
	messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
	got := map[string]*message.Message{}
	for range 2 {
		m := receive(t, messages)
		got[m.UUID] = m
	}
	require.Equal(t, "\x00\xfe\xff", string(got["topic/0/0"].Payload))
	require.Equal(t, "\x00\xff", got["topic/0/0"].Metadata.Get("h\xff"))
	require.Equal(t, "\xff\x00", got["topic/0/0"].Metadata.Get(bus.MetadataKey))
	require.Empty(t, got["topic/0/1"].Payload)
}

// A broker has lost its records and numbers new ones from 0. The group's committed offset is now past the end. The
// group must read from the oldest record.
func TestSubscriber_ReadsFromTheOldestRecordIfItsOffsetIsPastTheEnd(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		createTopic(t, k, "topic", 1)
		publish(t, publisher(t, k), "topic", keyed("a", "0"), keyed("a", "1"))
		s := subscriber(t, k, bus.SubscriberOptions{})
		receive(t, subscribe(t, s, "topic"))
		require.NoError(t, s.Close()) // the subscription has created the group
		commit(t, k, "topic", 0, 1000)

		s = subscriber(t, k, bus.SubscriberOptions{})
		messages := subscribe(t, s, "topic")
		m := receive(t, messages)
		require.Equal(t, "a/0", m.UUID)
		m.Ack()
		receive(t, messages)
		require.NoError(t, s.Close())
		require.EqualValues(t, 1, committed(t, k, "topic", 0))
		require.Equal(t, "a/1", receive(t, subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")).UUID)
	})
}

// commit sets the committed offset of the group "test". The group must exist and must not have members.
func commit(t testing.TB, k backend.Kafka, topic string, partition int32, offset int64) {
	t.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(k.Topic(topic), partition, offset, -1)
	require.NoError(t, administrator(t, k).CommitAllOffsets(t.Context(), k.Topic("test."+topic), offsets))
	require.Equal(t, offset, committed(t, k, topic, partition))
}

func TestNewSubscriber_RefusesInvalidOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]bus.SubscriberOptions{
		"no group":        {},
		"negative window": {Group: "g", Window: -1},
		"Drain too long":  {Group: "g", Drain: time.Hour},
		"instance id":     {Group: "g", InstanceID: strings.Repeat("x", 300)},
	} {
		_, err := bus.NewSubscriber(backend.Kafka{Brokers: []string{"127.0.0.1:1"}, ClientID: "test"}, o)
		require.Error(t, err, name)
	}
}

func TestSubscriber_ACancelledSubscriptionDoesNotEndOthers(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	for n := range 2 {
		createTopic(t, k, fmt.Sprint("topic", n), 1)
	}
	s := subscriber(t, k, bus.SubscriberOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	ending, err := s.Subscribe(ctx, "topic0")
	require.NoError(t, err)
	lasting := subscribe(t, s, "topic1")
	cancel()
	_, open := <-ending
	require.False(t, open)
	publish(t, publisher(t, k), "topic1", keyed("a", "0"))
	require.Equal(t, "a/0", receive(t, lasting).UUID)
}

package bus_test

import (
	"errors"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// restartable is an embedded broker that keeps its data and its address over restarts.
type restartable struct {
	backend.Kafka
	t       testing.TB
	options embedded.KafkaOptions
	running *embedded.Kafka
}

func startRestartable(t testing.TB) *restartable {
	t.Helper()
	r := &restartable{t: t, options: embedded.KafkaOptions{Dir: t.TempDir()}}
	r.start()
	_, port, err := net.SplitHostPort(r.running.Brokers()[0])
	require.NoError(t, err)
	r.options.Port, err = strconv.Atoi(port)
	require.NoError(t, err)
	r.Kafka = backend.Kafka{Brokers: r.running.Brokers(), ClientID: "bus-test", TopicPrefix: "t."}
	t.Cleanup(func() { r.running.Stop() })
	return r
}

func (r *restartable) start() {
	r.t.Helper()
	require.Eventually(r.t, func() (ok bool) {
		var err error
		r.running, err = embedded.StartKafka(r.options)
		return err == nil
	}, dependencyWait, 50*time.Millisecond)
}

// publishAll publishes messages one after another. While the broker is unavailable, it publishes a message again until
// the call succeeds.
func publishAll(t testing.TB, p message.Publisher, messages []*message.Message) {
	for _, m := range messages {
		for {
			err := p.Publish("topic", m)
			if err == nil {
				break
			}
			if !errors.Is(err, retry.ErrUnavailable) {
				t.Errorf("publish: %v", err)
				return
			}
		}
	}
}

func numbered(key string, from, to int) (all []*message.Message) {
	for n := from; n < to; n++ {
		all = append(all, keyed(key, strconv.Itoa(n)))
	}
	return all
}

func TestSubscriber_SurvivesARestartOfTheBroker(t *testing.T) {
	t.Parallel()
	k := startRestartable(t)
	createTopic(t, k.Kafka, "topic", 3)
	recorded := newRecorder()
	s := subscriber(t, k.Kafka, bus.SubscriberOptions{Drain: 2 * time.Second})
	messages := subscribe(t, s, "topic")
	handling := recorded.handle(messages)
	p := publisher(t, k.Kafka)
	const keys, each = 4, 150
	var publishing sync.WaitGroup
	for key := range keys {
		publishing.Go(func() { publishAll(t, p, numbered("k"+strconv.Itoa(key), 0, each)) })
	}
	for n, down := range []time.Duration{0, time.Second} {
		meshtest.Eventually(t, "some came", func() bool { return recorded.total() > (n+1)*keys*each/4 })
		k.running.Stop()
		time.Sleep(down)
		k.start()
	}
	publishing.Wait()
	meshtest.Eventually(t, "all came", func() bool { return recorded.total() == keys*each })
	require.NoError(t, s.Close())
	handling.Wait()
	require.Empty(t, recorded.violations)
	t.Logf("%d repeats", recorded.repeats)
}

// The test is not parallel, because it measures the CPU time of the process.
func TestReader_SurvivesARestartOfTheBroker(t *testing.T) {
	k := startRestartable(t)
	createTopic(t, k.Kafka, "topic", 1)
	p := publisher(t, k.Kafka)
	publishAll(t, p, numbered("a", 0, 10))
	messages := subscribe(t, reader(t, k.Kafka, bus.ReaderOptions{From: fromOldest}), "topic")
	next := 0
	expect := func(to int) {
		for ; next < to; next++ {
			m := receive(t, messages)
			require.Equal(t, "a/"+strconv.Itoa(next), m.UUID, "neither a repeat nor a gap")
			m.Ack()
		}
	}
	expect(5)
	k.running.Stop()
	before := processTime(t)
	time.Sleep(2 * time.Second)
	require.Less(t, processTime(t)-before, 500*time.Millisecond, "waiting takes no CPU time")
	k.start()
	var publishing sync.WaitGroup
	publishing.Go(func() { publishAll(t, p, numbered("a", 10, 20)) })
	publishing.Wait()
	expect(10) // some of these messages were fetched before the stop, the others are fetched now
	last := receive(t, messages)
	require.Equal(t, "a/10", last.UUID)
	last.Ack()
	for m := last; m.UUID != "a/19"; { // the publisher may have sent messages twice, so the numbers are not checked
		m = receive(t, messages)
		m.Ack()
	}
}

func TestSubscriber_ClosesWhileTheBrokerIsUnavailable(t *testing.T) {
	t.Parallel()
	k := startRestartable(t)
	createTopic(t, k.Kafka, "topic", 3)
	publish(t, publisher(t, k.Kafka), "topic", keyed("a", "0"))
	s := subscriber(t, k.Kafka, bus.SubscriberOptions{})
	receive(t, subscribe(t, s, "topic"))
	r := reader(t, k.Kafka, bus.ReaderOptions{})
	receive(t, subscribe(t, r, "topic"))
	k.running.Stop()
	begun := time.Now()
	require.NoError(t, s.Close())
	require.NoError(t, r.Close())
	require.Less(t, time.Since(begun), 15*time.Second)
	t.Logf("closed after %v", time.Since(begun))
}

func TestPublisher_ReportsThatTheBrokerIsUnavailable(t *testing.T) {
	t.Parallel()
	k := startRestartable(t)
	createTopic(t, k.Kafka, "topic", 1)
	p := publisher(t, k.Kafka)
	publish(t, p, "topic", keyed("a", "0"))
	k.running.Stop()
	begun := time.Now()
	err := p.Publish("topic", keyed("a", "1"), keyed("a", "2"))
	t.Logf("the error came after %v", time.Since(begun))
	require.ErrorIs(t, err, retry.ErrUnavailable)
	var failed *bus.PublishError
	require.ErrorAs(t, err, &failed)
	require.Len(t, failed.Failed, 2)
	k.start()
	meshtest.Eventually(t, "it publishes again", func() bool { return p.Publish("topic", keyed("a", "3")) == nil })

	_, err = bus.NewPublisher(backend.Kafka{Brokers: []string{"127.0.0.1:1"}, ClientID: "t"}, nil)
	require.ErrorIs(t, err, retry.ErrUnavailable)
}

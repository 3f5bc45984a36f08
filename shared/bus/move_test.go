package bus_test

import (
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// threeBrokers starts a cluster of three brokers, in which partitions can be moved from broker to broker.
func threeBrokers(t *testing.T) (*kfake.Cluster, backend.Kafka) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(3))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, backend.Kafka{Brokers: c.ListenAddrs(), ClientID: "bus-test", TopicPrefix: "t."}
}

// move moves the partition six times, to each broker in turn. Before the move with the number n, it waits until some(n)
// is true.
func move(t *testing.T, c *kfake.Cluster, some func(n int) bool) {
	t.Helper()
	for n := range 6 {
		meshtest.Eventually(t, "messages between two moves", func() bool { return some(n) })
		require.NoError(t, c.MoveTopicPartition("t.topic", 0, int32(n%3)))
	}
}

func TestReader_FollowsAPartitionThatMoves(t *testing.T) {
	t.Parallel()
	c, k := threeBrokers(t)
	createTopic(t, k, "topic", 1)
	messages := subscribe(t, reader(t, k, bus.ReaderOptions{From: fromOldest}), "topic")
	const count = 300
	var publishing sync.WaitGroup
	publishing.Go(func() { publishAll(t, publisher(t, k), numbered("a", 0, count)) })
	var mu sync.Mutex
	next := 0
	publishing.Go(func() {
		for deadline := time.After(dependencyWait); ; {
			select {
			case m := <-messages:
				n, err := strconv.Atoi(m.UUID[len("a/"):])
				m.Ack()
				mu.Lock()
				if err != nil || n > next { // a number below next is a repeat, which is allowed
					t.Errorf("got %s, want %d", m.UUID, next)
				}
				next = max(next, n+1)
				done := next == count
				mu.Unlock()
				if done {
					return
				}
			case <-deadline:
				t.Error("not all messages arrived")
				return
			}
		}
	})
	move(t, c, func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		return next > n*count/8
	})
	publishing.Wait()
}

func TestSubscriber_FollowsAPartitionThatMoves(t *testing.T) {
	t.Parallel()
	c, k := threeBrokers(t)
	createTopic(t, k, "topic", 1)
	recorded := newRecorder()
	s := subscriber(t, k, bus.SubscriberOptions{Drain: 2 * time.Second})
	messages := subscribe(t, s, "topic")
	handling := recorded.handle(messages)
	var publishing sync.WaitGroup
	const keys, each = 3, 100
	p := publisher(t, k)
	for key := range keys {
		publishing.Go(func() { publishAll(t, p, numbered("k"+strconv.Itoa(key), 0, each)) })
	}
	move(t, c, func(n int) bool { return recorded.total() > n*keys*each/8 })
	publishing.Wait()
	meshtest.Eventually(t, "all came", func() bool { return recorded.total() == keys*each })
	require.NoError(t, s.Close())
	handling.Wait()
	require.Empty(t, recorded.violations)
}

//go:build integration

package owner_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// On a real broker, a topic grows from 3 to 4 partitions while events are published. Meanwhile the service that
// consumes the topic restarts. Each event must be applied once, and the events of a stream in order.
func TestConsume_ATopicGrowsOnKafka(t *testing.T) {
	t.Parallel()
	l := newListenerOn(t, "chat-events", meshtest.Kafka(t))
	stop := l.listens()
	const rounds, rooms = 100, 8
	var talking sync.WaitGroup
	talking.Go(func() {
		for range rounds {
			var all []envelope.Command
			for c := range rooms {
				all = append(all, say("alice", uuid.NewString(), fmt.Sprint(c), "fine"))
			}
			l.send(all...)
			time.Sleep(100 * time.Millisecond)
		}
	})
	l.awaitSome("0", 5)
	meshtest.GrowTopic(t, l.env.Stores.Kafka, "chat-events", 4)
	stop()
	l.listens()
	talking.Wait()
	var want []catalog.Version
	for v := range catalog.Version(rounds) {
		want = append(want, v+1)
	}
	l.eventually("the new partition is consumed", func() bool {
		var n int
		require.NoError(t, l.env.Stores.Postgres.QueryRow(t.Context(),
			"SELECT count(*) FROM notification.checkpoints WHERE partitions = 4").Scan(&n))
		return n == 4
	})
	for c := range rooms {
		l.awaitRaised(fmt.Sprint(c), want...)
	}
}

func (l *listener) awaitSome(conversation string, n int) {
	l.t.Helper()
	l.eventually("some greetings", func() bool { return len(l.raised(conversation)) >= n })
}

// A release declares 3 partitions, but the broker has one. The relay of chat and the consumer must use this partition.
// Once the broker has 3 partitions, the relay and the consumer must use all of them.
func TestConsume_ABrokerWithFewerPartitionsThanDeclared(t *testing.T) {
	t.Parallel()
	kafka := meshtest.EmbeddedKafka(t)
	admin := meshtest.KafkaAdmin(t, kafka)
	_, err := admin.CreateTopic(t.Context(), 1, 1, nil, kafka.Topic("chat-events"))
	require.NoError(t, err)
	l := newListenerOn(t, "chat-events", kafka)
	l.listens()
	const rooms = 8
	for c := range rooms {
		l.say(fmt.Sprint(c), "fine", "fine")
	}
	for c := range rooms {
		l.awaitRaised(fmt.Sprint(c), 1, 2)
	}
	partitions := func() (n int) {
		require.NoError(t, l.env.Stores.Postgres.QueryRow(t.Context(),
			"SELECT count(*) FROM notification.checkpoints WHERE partitions = (SELECT count(*) FROM notification.checkpoints)").Scan(&n))
		return n
	}
	require.Equal(t, 1, partitions())
	meshtest.GrowTopic(t, kafka, "chat-events", 3)
	l.eventually("all partitions are consumed", func() bool { return partitions() == 3 })
	for c := range rooms {
		l.say(fmt.Sprint(c), "fine")
	}
	for c := range rooms {
		l.awaitRaised(fmt.Sprint(c), 1, 2, 3)
	}
}

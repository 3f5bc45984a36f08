//go:build integration

package consume_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// A topic grows from 3 to 4 partitions while events are published. At the same time one of two instances stops, and
// another starts. The events of each stream must be applied once and in order.
func TestConsume_GrowsUnderTrafficAndARebalance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.start()
	w.start()
	names := conversations(20)
	const rounds = 40
	half := make(chan struct{})
	var talking sync.WaitGroup
	talking.Go(func() {
		for n := range rounds {
			if n == rounds/2 {
				grown, err := meshtest.KafkaAdmin(t, w.kafka).UpdatePartitions(t.Context(), 4, w.kafka.Topic(topic))
				if err != nil || grown.Error() != nil {
					t.Errorf("grow: %v %v", err, grown.Error())
					close(half)
					return
				}
				w.source.grow(4)
				close(half)
			}
			for _, c := range names {
				w.source.say(c, "hello")
			}
		}
	})
	<-half
	first.stop()
	w.start()
	talking.Wait()
	w.stored()
	for _, c := range names {
		require.Equal(t, upTo(rounds), w.raised("bob", c), "conversation %s", c)
	}
	require.EqualValues(t, 4, w.number("SELECT count(*) FROM notification.checkpoints WHERE partitions = 4 AND epoch = 2"))
}

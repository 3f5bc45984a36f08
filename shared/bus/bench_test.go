package bus_test

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
)

var body300 = string(make([]byte, 300))

// BenchmarkPublish compares a caller that publishes messages one by one, as Watermill's stock publisher always does,
// with a caller that publishes batches of 500.
func BenchmarkPublish(b *testing.B) {
	benchBoth(b, func(b *testing.B, k backend.Kafka) {
		createTopic(b, k, "topic", 3)
		p := publisher(b, k)
		var single float64
		for _, size := range []int{1, 500} {
			b.Run("batch="+strconv.Itoa(size), func(b *testing.B) {
				batch := make([]*message.Message, size)
				for i := range batch {
					batch[i] = keyed("key"+strconv.Itoa(i%97), body300)
				}
				for sent := 0; sent < b.N; sent += size {
					require.NoError(b, p.Publish("topic", batch[:min(size, b.N-sent)]...))
				}
				rate := float64(b.N) / b.Elapsed().Seconds()
				b.ReportMetric(rate, "messages/s")
				if size == 1 {
					single = rate
				} else if single > 0 {
					b.ReportMetric(rate/single, "x-single")
				}
			})
		}
	})
}

// BenchmarkSubscribe compares Subscriber, which has lanes, with Watermill's stock subscriber. The topic has three
// partitions and a thousand keys. The handler waits a millisecond, which is about as long as a commit takes.
func BenchmarkSubscribe(b *testing.B) {
	benchBoth(b, func(b *testing.B, k backend.Kafka) {
		var stock float64
		for _, kind := range []string{"stock", "lanes"} {
			b.Run(kind, func(b *testing.B) {
				topic := kind + strconv.Itoa(b.N)
				createTopic(b, k, topic, 3)
				p := publisher(b, k)
				for sent := 0; sent < b.N; {
					var batch []*message.Message
					for ; len(batch) < 500 && sent < b.N; sent++ {
						batch = append(batch, keyed("key"+strconv.Itoa(sent%1000), body300))
					}
					require.NoError(b, p.Publish(topic, batch...))
				}
				var s message.Subscriber = subscriber(b, k, bus.SubscriberOptions{})
				if kind == "stock" {
					s = prefixed{stockSubscriber(b, k, "bench."+topic), k}
				}
				b.ResetTimer()
				messages := subscribe(b, s, topic)
				var handled atomic.Int64
				done := make(chan struct{})
				var handling sync.WaitGroup
				handling.Go(func() {
					for m := range messages {
						handling.Go(func() {
							time.Sleep(time.Millisecond)
							m.Ack()
							if handled.Add(1) == int64(b.N) {
								close(done)
							}
						})
					}
				})
				<-done
				b.StopTimer()
				rate := float64(b.N) / b.Elapsed().Seconds()
				b.ReportMetric(rate, "messages/s")
				if kind == "stock" {
					stock = rate
				} else if stock > 0 {
					b.ReportMetric(rate/stock, "x-stock")
				}
				require.NoError(b, s.Close())
				handling.Wait()
			})
		}
	})
}

// prefixed is a subscriber that adds the installation's prefix to the name of a topic before it subscribes.
type prefixed struct {
	message.Subscriber
	k backend.Kafka
}

func (p prefixed) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return p.Subscriber.Subscribe(ctx, p.k.Topic(topic))
}

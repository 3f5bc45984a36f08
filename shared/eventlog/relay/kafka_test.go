package relay

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// kafka starts an embedded broker with the log's topics.
func kafka(t testing.TB, l *eventlog.Log) backend.Kafka {
	t.Helper()
	server, err := embedded.StartKafka(embedded.KafkaOptions{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	k := backend.Kafka{Brokers: server.Brokers(), ClientID: "eventlog-test"}
	if _, err := k.EnsureTopics(t.Context(), l.Options().Catalog.LoggedTopics("chat")); err != nil {
		t.Fatal(err)
	}
	return k
}

func publisher(t testing.TB, k backend.Kafka) *bus.Publisher {
	t.Helper()
	p, err := bus.NewPublisher(k, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// A relay publishes to an embedded broker. A bus.Reader must get the events of each partition in order, and in each
// partition a record with the log's last position.
func TestRelay_OnABroker(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	k := kafka(t, l)
	from, err := bus.NewReader(k, bus.ReaderOptions{
		From: func(_ string, _ int32, oldest, _ int64) int64 { return oldest },
		Log:  slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	arriving, err := from.Subscribe(t.Context(), "chat-events")
	if err != nil {
		t.Fatal(err)
	}
	r := New(l, Options{Publisher: publisher(t, k), PositionEvery: 50 * time.Millisecond})
	during(t, r.Run)
	const events = 40
	for i := range events {
		commit(t, l, said(fmt.Sprint(i%7), fmt.Sprint(i)))
	}
	numbers := map[int32]catalog.Position{}
	seen := 0
	deadline := time.After(20 * time.Second)
	for seen < events || len(numbers) < 3 || slices.Min([]catalog.Position{numbers[0], numbers[1], numbers[2]}) < events {
		select {
		case m := <-arriving:
			e, err := envelope.ReadEvent(m)
			if err != nil {
				t.Fatal(err)
			}
			partition, _ := bus.PartitionOf(m.Context())
			if e.Before != numbers[partition] {
				t.Fatalf("partition %d at %d: %d comes after %d", partition, numbers[partition], e.Position, e.Before)
			}
			if !e.IsPosition() {
				seen++
			}
			numbers[partition] = e.Position
			m.Ack()
		case <-deadline:
			t.Fatalf("saw %d events, numbers %v", seen, numbers)
		}
	}
}

// BenchmarkRelay measures how fast a relay publishes b.N events to an embedded broker. All events are in the log before
// the relay starts.
func BenchmarkRelay(b *testing.B) {
	l := fresh(b)
	k := kafka(b, l)
	var next atomic.Int64
	var writing sync.WaitGroup
	for range 256 {
		writing.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if _, err := l.Commit(b.Context(), said(fmt.Sprint(n%1000), fmt.Sprint(n))); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	writing.Wait()
	r := New(l, Options{Publisher: publisher(b, k)})
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ResetTimer()
	go func() { ended <- r.Run(ctx) }()
	for saved := int64(0); saved < int64(b.N); time.Sleep(time.Millisecond) {
		if err := l.Options().Pool.QueryRow(ctx, "SELECT position FROM chat.relay").Scan(&saved); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	cancel()
	if err := <-ended; err != nil {
		b.Error(err)
	}
}

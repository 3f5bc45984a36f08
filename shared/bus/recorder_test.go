package bus_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
)

const dependencyWait = 30 * time.Second

// recorder records what the members of a group receive, by key. Bodies are numbers that count up from 0 for each key.
type recorder struct {
	mu         sync.Mutex
	next       map[string]int // the lowest body that was not delivered yet
	acked      map[string]int // number of acknowledged bodies, without repeats
	seen       map[string]bool
	inHand     map[string]int
	repeats    int
	violations []string
}

func newRecorder() *recorder {
	return &recorder{next: map[string]int{}, acked: map[string]int{}, seen: map[string]bool{}, inHand: map[string]int{}}
}

func (r *recorder) begin(m *message.Message) {
	key, body := m.Metadata.Get(bus.MetadataKey), string(m.Payload)
	n, err := strconv.Atoi(body)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch next := r.next[key]; {
	case err != nil || n > next:
		r.violations = append(r.violations, fmt.Sprintf("%s: got %q, want %d", key, body, next))
	case n == next:
		r.next[key]++
	default:
		r.repeats++
	}
	if r.inHand[key]++; r.inHand[key] > 1 {
		r.violations = append(r.violations, fmt.Sprintf("%s: %s was delivered while another message was handled", key, body))
	}
}

func (r *recorder) end(m *message.Message) {
	key := m.Metadata.Get(bus.MetadataKey)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inHand[key]--
	if id := key + "/" + string(m.Payload); !r.seen[id] {
		r.seen[id] = true
		r.acked[key]++
	}
}

func (r *recorder) total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

func subscriber(t testing.TB, k backend.Kafka, o bus.SubscriberOptions) *bus.Subscriber {
	t.Helper()
	if o.Group == "" {
		o.Group = "test"
	}
	if o.Drain == 0 {
		o.Drain = 100 * time.Millisecond
	}
	s, err := bus.NewSubscriber(k, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// handle handles messages concurrently until the channel is closed. The returned WaitGroup waits for all handlers.
func (r *recorder) handle(messages <-chan *message.Message) *sync.WaitGroup {
	handling := &sync.WaitGroup{}
	handling.Go(func() {
		for m := range messages {
			handling.Go(func() {
				r.begin(m)
				r.end(m)
				m.Ack()
			})
		}
	})
	return handling
}

func subscribe(t testing.TB, s message.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	messages, err := s.Subscribe(context.Background(), topic)
	require.NoError(t, err)
	return messages
}

func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-messages:
		require.True(t, ok, "closed")
		return m
	case <-time.After(dependencyWait):
		require.Fail(t, "no message came")
		return nil
	}
}

// nothing fails the test if a message is delivered within 300 ms.
func nothing(t testing.TB, messages <-chan *message.Message) {
	t.Helper()
	select {
	case m := <-messages:
		require.Fail(t, "a message came", "%s", m.UUID)
	case <-time.After(300 * time.Millisecond):
	}
}

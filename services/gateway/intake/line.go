package intake

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// line publishes to one command topic, in order. The commands that arrive while a batch is published become the next
// batch, so that many commands cost one round trip.
type line struct {
	topic     string
	publisher message.Publisher
	log       *slog.Logger

	fresh func([]*waiter) []*waiter // returns the waiters whose commands still have to be published
	done  func([]*waiter)           // called with the waiters whose commands need not be published any more

	mu    sync.Mutex
	queue []*waiter
	wake  chan struct{}
}

// batch is the maximum number of commands in one call of the publisher.
const batch = 1000

func newLine(topic string, p message.Publisher, log *slog.Logger, fresh func([]*waiter) []*waiter,
	done func([]*waiter)) *line {
	return &line{topic: topic, publisher: p, log: log, fresh: fresh, done: done, wake: make(chan struct{}, 1)}
}

func (l *line) put(w *waiter) {
	l.mu.Lock()
	l.queue = append(l.queue, w)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *line) take() []*waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(batch, len(l.queue))
	waiters := l.queue[:n:n]
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	return waiters
}

func (l *line) run(ctx context.Context) error {
	for {
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil
		}
		for waiters := l.take(); len(waiters) > 0; waiters = l.take() {
			if !l.publish(ctx, waiters) {
				return nil
			}
			l.done(waiters)
		}
	}
}

// publish publishes a batch, and tries again until it succeeds. It returns false if the context ends first. Later
// batches wait, so that the order is kept. A command may be published twice; its owner recognizes the repeat by the
// command id. Each attempt leaves out the commands that need not be published any more (Intake.fresh).
func (l *line) publish(ctx context.Context, waiters []*waiter) bool {
	backoff := retry.Backoff{First: 50 * time.Millisecond, Max: time.Second}
	for {
		sent := l.fresh(waiters)
		if len(sent) == 0 {
			return true
		}
		messages := make([]*message.Message, len(sent))
		for i, w := range sent {
			messages[i] = w.message()
		}
		err := l.publisher.Publish(l.topic, messages...)
		if err == nil {
			for _, w := range sent {
				w.taken.Store(true)
			}
			return true
		}
		if backoff.Failures == 0 {
			l.log.Warn("intake: commands wait because Kafka is unavailable", "topic", l.topic, "commands", len(sent),
				"error", err)
		}
		if !backoff.Wait(ctx) {
			return false
		}
	}
}

// message returns the command as a message, which continues the trace in the field ctx.
func (w *waiter) message() *message.Message {
	c := w.command
	m := envelope.Command{ID: c.ID, Type: c.Declared.Name, Stream: c.Stream, Actor: c.Actor, Time: time.Now(),
		Expires: c.Expires, Correlation: c.ID, Body: c.Body}.Message()
	m.SetContext(w.ctx)
	return m
}

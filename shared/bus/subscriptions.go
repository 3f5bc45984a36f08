package bus

import (
	"context"
	"errors"
	"sync"
)

var errSubscriberClosed = errors.New("subscriber is closed")

// subscriptions are the active subscriptions of a Subscriber or a Reader.
type subscriptions struct {
	closing context.Context
	close   context.CancelFunc

	// begin adds to running under mu, and Close ends the context closing under mu. So nothing is added to running while
	// Close waits for it.
	mu      *sync.Mutex
	running *sync.WaitGroup
}

func newSubscriptions() subscriptions {
	ctx, cancel := context.WithCancel(context.Background())
	return subscriptions{closing: ctx, close: cancel, mu: &sync.Mutex{}, running: &sync.WaitGroup{}}
}

// begin calls the function run in a new goroutine. The context of run ends when ctx ends or Close is called. After
// Close, begin only returns an error.
func (s subscriptions) begin(ctx context.Context, run func(context.Context)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() != nil {
		return errSubscriberClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.closing, cancel)
	s.running.Go(func() {
		defer cancel()
		defer unhook()
		run(ctx)
	})
	return nil
}

// Close ends all subscriptions and calls of Reader.Read, and waits until they have ended. Messages in flight have up to
// Drain to finish. Then a Subscriber tries once more to commit its offsets. The handlers of Reader.Read may take as
// long as they need. Close may be called again.
func (s subscriptions) Close() error {
	s.mu.Lock()
	s.close()
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

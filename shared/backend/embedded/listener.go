package embedded

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

// lastingListener continues after errors of Accept, such as too many open files, until it is closed. An ordinary
// listener would return such an error to the broker, which would close the listener and remain unreachable.
type lastingListener struct {
	net.Listener
	log *slog.Logger

	closing sync.Once
	closed  chan struct{}
}

// lasting wraps a function such as net.Listen, so that its listeners are lastingListeners.
func lasting(log *slog.Logger, listen func(network, address string) (net.Listener, error)) func(string, string) (
	net.Listener, error) {
	return func(network, address string) (net.Listener, error) {
		l, err := listen(network, address)
		if err != nil {
			return nil, err
		}
		return &lastingListener{Listener: l, log: log, closed: make(chan struct{})}, nil
	}
}

// Accept waits for the next connection. It returns an error only once the listener is closed.
func (l *lastingListener) Accept() (net.Conn, error) {
	for delay := (retry.Backoff{First: 5 * time.Millisecond, Max: time.Second}); ; {
		connection, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return connection, err
		}
		pause := delay.Next()
		if delay.Failures == 1 || delay.Failures > 8 {
			l.log.Warn("the embedded Kafka cannot accept a connection, trying again", "error", err)
		}
		select {
		case <-time.After(pause):
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
}

// Close ends Accept, even while Accept waits to try again.
func (l *lastingListener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

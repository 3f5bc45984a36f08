package embedded

import (
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// failing is a listener whose next calls of Accept fail as if the process had too many open files.
type failing struct {
	net.Listener
	failures atomic.Int64 // number of calls of Accept that still fail
}

func (f *failing) Accept() (net.Conn, error) {
	if f.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

func TestListener_ContinuesAfterTooManyOpenFiles(t *testing.T) {
	t.Parallel()
	var f *failing
	l, err := lasting(slog.New(slog.NewTextHandler(t.Output(), nil)), func(network, address string) (net.Listener, error) {
		own, err := net.Listen(network, address)
		f = &failing{Listener: own}
		f.failures.Store(5)
		return f, err
	})("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	accepted := make(chan error)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, <-accepted)
	require.NoError(t, c.Close())

	f.failures.Store(1 << 40) // all calls fail from now on; Close must end Accept while it waits to try again
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	require.Eventually(t, func() bool { return f.failures.Load() < 1<<40-3 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-accepted, net.ErrClosed)
}

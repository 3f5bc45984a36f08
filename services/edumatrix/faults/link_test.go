package faults

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo starts a server that sends back what it receives, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return listener.Addr().String()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

func open(t *testing.T) *Link {
	t.Helper()
	l, err := NewLink(freeAddr(t), echo(t))
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

func dial(t *testing.T, l *Link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", l.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// roundTrip writes a text and reads it back. It returns the duration of this round trip.
func roundTrip(c net.Conn, text string, within time.Duration) (time.Duration, error) {
	begun := time.Now()
	if _, err := io.WriteString(c, text); err != nil {
		return 0, err
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c, make([]byte, len(text)))
	return time.Since(begun), err
}

func TestLink_CutEndsConnectionsAndRefusesNewOnesUntilMended(t *testing.T) {
	t.Parallel()
	l := open(t)
	c := dial(t, l)
	_, err := roundTrip(c, "hello", 5*time.Second)
	require.NoError(t, err)
	l.Cut()
	_, err = roundTrip(c, "hello", 5*time.Second)
	require.Error(t, err)
	_, err = net.Dial("tcp4", l.Addr())
	require.Error(t, err)
	require.NoError(t, l.Mend())
	_, err = roundTrip(dial(t, l), "again", 5*time.Second)
	require.NoError(t, err)
}

func TestLink_ChangeAppliesToOpenConnections(t *testing.T) {
	t.Parallel()
	l := open(t)
	c := dial(t, l)
	l.Change(Conditions{Delay: 50 * time.Millisecond})
	took, err := roundTrip(c, "slowly", 5*time.Second)
	require.NoError(t, err)
	require.GreaterOrEqual(t, took, 100*time.Millisecond, "the delay applies in both directions")

	l.Change(Conditions{Rate: 10_000})
	took, err = roundTrip(c, string(make([]byte, 2000)), 5*time.Second)
	require.NoError(t, err)
	require.GreaterOrEqual(t, took, 300*time.Millisecond)

	l.Change(Conditions{Silent: true})
	_, err = roundTrip(c, "anybody?", 100*time.Millisecond)
	require.Error(t, err)
	require.NoError(t, l.Mend())
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	heard := make([]byte, len("anybody?"))
	_, err = io.ReadFull(c, heard)
	require.NoError(t, err, "the data that was held back must arrive in the end")
	require.Equal(t, "anybody?", string(heard))

	l.Change(Conditions{Reset: true})
	_, err = roundTrip(c, "hello", 5*time.Second)
	require.Error(t, err)
}

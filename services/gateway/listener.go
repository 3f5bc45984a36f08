package gateway

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// boundedListener limits the number of client connections, with and without a WebSocket. Otherwise, clients could use
// up all files that this process may open. Calls to the owners and to Kafka would then fail, which would affect all
// users.
type boundedListener struct {
	net.Listener
	max  int64
	open atomic.Int64
}

// margin is the number of connections above boundedListener.max that are accepted only to refuse their requests (see
// full).
const margin = 64

// Accept waits for the next connection. Connections above l.max+margin are closed at once.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) > l.max+margin {
			_ = c.Close()
			l.open.Add(-1)
			continue
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		return &boundedTCP{TCPConn: tcp, listener: l}, nil
	}
}

// full returns a handler that passes requests on to the handler next. While there are more than l.max connections, the
// returned handler responds with 503 instead. On the path of WebSockets it first calls the function refuse, and does
// not respond if refuse returns true: refuse has then responded itself.
func (l *boundedListener) full(next http.Handler, refuse func(http.ResponseWriter, *http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.open.Load() <= l.max {
			next.ServeHTTP(w, r)
			return
		}
		if r.URL.Path == socketPath && refuse(w, r) {
			return
		}
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(http.StatusServiceUnavailable)
		body, _ := wirejson.Encode(map[string]any{"error": map[string]string{"code": refusal.Unavailable,
			"message": "this gateway has reached its maximum number of connections; connect again later"}})
		_, _ = w.Write(body)
	})
}

// boundedTCP is a connection that is counted until it is closed.
type boundedTCP struct {
	*net.TCPConn
	listener *boundedListener
	closed   atomic.Bool
}

func (c *boundedTCP) Close() error {
	if !c.closed.Swap(true) {
		c.listener.open.Add(-1)
	}
	return c.TCPConn.Close()
}

// boundedConn is the same as boundedTCP for connections that are not TCP.
type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

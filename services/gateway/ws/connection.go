package ws

import (
	"context"
	"errors"
	"iter"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/protocol"
	"github.com/edumatrix/interlinked/shared/auth"
)

// connection is one socket. Its reader (reader.go) has a goroutine for as long as the socket is open. Its writer
// (writer.go) has one only while frames wait.
type connection struct {
	server   *Server
	socket   *websocket.Conn // for reading; all writes go through send, except close frames after protocol errors
	net      net.Conn
	encoding frame.Encoding
	conn     *hub.Conn

	seen        atomic.Int64 // when the client was last known to be alive, in nanoseconds since 1970
	unconfirmed atomic.Int64 // bytes written since the last call of alive

	pingDue atomic.Bool
	ending  atomic.Bool // whether the write deadline is final; see cut
	mu      sync.Mutex
	pong    []byte // the payload of a client's ping that was not answered yet, or nil

	// Used only by the writer.
	armed    time.Time // when the write deadline was set
	torn     bool      // whether a frame may have been written in part
	finished bool      // whether finish was called

	slot    int            // index in wheel.slots
	written sync.WaitGroup // done when the writer has ended the connection; see finish
}

// handshake contains the data from the request that opened a connection.
type handshake struct {
	user   *auth.User // the user of the token in the header Authorization; nil if there is no token
	device string
}

// serve handles a connection from its upgrade to its end.
func (c *connection) serve(ctx context.Context, h handshake) {
	o := c.server.options
	defer c.server.leave()
	defer func() { _ = c.net.Close() }()
	defer o.Guard.Recover("connection", func() {
		if c.conn == nil {
			c.end(hub.Internal)
		} else {
			c.conn.Close(hub.Internal)
		}
	})
	message, err, ok := c.first()
	if !ok {
		return
	}
	next, stop := iter.Pull2(frame.Decode(c.encoding, message))
	defer stop()
	request := frame.Request{}
	if err == nil {
		request, err, _ = next()
	}
	ctx, cancel := context.WithCancel(ctx)
	s, err := o.Mesh.Open(ctx, protocol.Opening{User: h.user, Device: h.device, Encoding: c.encoding, Request: request, Err: err})
	if err != nil {
		cancel()
		var rejected *protocol.RejectedError
		if !errors.As(err, &rejected) {
			rejected = &protocol.RejectedError{Reason: hub.Internal}
		}
		c.reject(request.ID, rejected)
		return
	}
	c.conn = s.Conn()
	defer func() {
		reason, _ := c.conn.Reason()
		o.Metrics.Closed.WithLabelValues(reason.Name).Inc()
		o.Log.Debug("ws: a connection has ended", "user", c.conn.User, "connection", c.conn.ID, "reason", reason.Name)
	}()
	defer s.Close()
	defer cancel()
	_ = c.net.SetReadDeadline(time.Time{})
	c.alive()
	c.written.Add(1)
	c.conn.Bind(c.write, func(hub.Reason) { c.cut() })
	c.server.wheel.add(c)
	defer c.server.wheel.remove(c)
	c.start(ctx, s, next)
	c.readAll(ctx, s)
	c.written.Wait()
}

// first waits for the client's first message. It returns the message, or the refusal of a message of the wrong kind. It
// returns false if the connection has to end. If the message is too large, or does not come in time, the client is sent
// the reason.
func (c *connection) first() (message []byte, refused error, ok bool) {
	_ = c.net.SetReadDeadline(time.Now().Add(c.server.options.Handshake))
	message, err := c.read()
	switch {
	case err == nil:
		return message, nil, true
	case errors.Is(err, errTooLarge):
		c.reject("", &protocol.RejectedError{Reason: hub.TooLarge})
	case errors.Is(err, errOther):
		return nil, protocol.WrongKind(c.encoding), true
	case timeout(err):
		// Do not call reject, which also reads: once a read deadline has passed, nothing more can be read. If a frame
		// arrives later, it stays unread, and the system answers it with a TCP reset.
		c.sendClosing(hub.ConnectTimeout)
		c.end(hub.ConnectTimeout)
	}
	return nil, nil, false
}

// start starts the connection's handler, and passes it the frames that came behind connect in the same message.
func (c *connection) start(ctx context.Context, s *protocol.Handler, next func() (frame.Request, error, bool)) {
	defer c.server.options.Guard.Recover("reader", func() { c.conn.Close(hub.Internal) })
	s.Start(ctx)
	for !c.conn.Ended() {
		r, err, ok := next()
		if !ok {
			return
		}
		s.HandleRequest(ctx, r, err)
	}
}

func timeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

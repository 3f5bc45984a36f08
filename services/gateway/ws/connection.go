package ws

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/session"
	"github.com/edumatrix/interlinked/shared/auth"
)

// grace is how long everything that is left may take when a connection ends: the frames that wait, the reason of the
// end, and the client's own end.
const grace = 5 * time.Second

// connection is one socket. Its reader (reader.go) has a goroutine for as long as it lives, its writer (writer.go) only
// while something waits to be written.
type connection struct {
	server *Server
	socket *websocket.Conn // only reads: whatever is written goes through send
	net    net.Conn
	conn   *hub.Conn

	seen        atomic.Int64 // when the client last showed that it is there, in nanoseconds since 1970
	unconfirmed atomic.Int64 // bytes written since then

	pingDue atomic.Bool
	ending  atomic.Bool // the write deadline is that of the end
	mu      sync.Mutex
	pong    []byte // the payload of a ping that is to be answered; nil: there is none

	// Of the writer.
	armed    time.Time // when the write deadline was set
	torn     bool      // a write ended in the middle
	finished bool

	slot    int            // in the wheel
	written sync.WaitGroup // done when the writer has written the reason of the end
}

// handshake is what a client says before it has a session.
type handshake struct {
	user    auth.User
	proved  bool // by a header; otherwise the first frame has to
	opening session.Opening
}

// serve is the life of a connection after its upgrade.
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
	if !h.proved && !c.authenticate(ctx, &h) {
		return
	}
	s, err := o.Mesh.Open(h.user, h.opening)
	if err != nil {
		c.end(reasonOf(err))
		c.drain()
		return
	}
	c.conn = s.Conn()
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		reason, _ := c.conn.Reason()
		o.Metrics.Closed.WithLabelValues(reason.Text).Inc()
		o.Log.Debug("ws: a connection has ended", "user", c.conn.User, "connection", c.conn.ID, "reason", reason.Text)
	}()
	defer s.Close()
	defer cancel()
	c.alive()
	c.written.Add(1)
	c.conn.Bind(c.write, func(hub.Reason) { c.cut() })
	c.server.wheel.add(c)
	defer c.server.wheel.remove(c)
	c.readAll(ctx, s)
	c.written.Wait()
}

// authenticate waits for the first frame, which holds the token and whether the client resumes. It refuses all other
// frames until then.
func (c *connection) authenticate(ctx context.Context, h *handshake) bool {
	_ = c.net.SetReadDeadline(time.Now().Add(c.server.options.Handshake))
	const tries = 8
	for range tries {
		text, err := c.read()
		if errors.Is(err, errTooLarge) {
			c.end(hub.TooLarge)
			c.drain()
			return false
		}
		if err != nil && !errors.Is(err, errBinary) {
			if timeout(err) {
				c.end(hub.HandshakeTimeout) // a late frame gets a reset, for want of a reader
			}
			return false
		}
		var intro session.Intro
		f, err := session.ReadFrame(text)
		if err == nil && f.Type != "auth" {
			err = refusal.New(refusal.Unauthorized, `the first frame has to be {"id":"0","type":"auth","data":{"token":"…"}}`)
		}
		if err == nil {
			intro, err = session.ReadIntro(f.Data)
		}
		if err != nil {
			c.sendFrame(session.Failed(f.ID, access.Refusal(err)))
			continue
		}
		if h.user, err = c.server.options.Access.User(ctx, intro.Token); err != nil {
			refused := access.Refusal(err)
			c.sendFrame(session.Failed(f.ID, refused))
			reason := hub.Unauthorized
			if refused.Code != refusal.Unauthorized {
				reason = hub.Unavailable
			}
			c.end(reason)
			c.drain()
			return false
		}
		c.sendFrame(session.Done(f.ID))
		_ = c.net.SetReadDeadline(time.Time{})
		h.opening.Resume = h.opening.Resume || intro.Resume
		if intro.Device != "" {
			h.opening.Device = deviceName(intro.Device)
		}
		return true
	}
	c.end(hub.Unauthorized)
	c.drain()
	return false
}

// drain reads what the client still sends, until it closes: a socket that is closed with something unread in it takes
// back what was written last, the reason of the end.
func (c *connection) drain() {
	_ = c.net.SetReadDeadline(time.Now().Add(grace))
	c.discard()
}

// discard reads frames until the client closes, or the read deadline.
func (c *connection) discard() {
	for {
		_, r, err := c.socket.NextReader()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r)
	}
}

// abandon lets the system forget what the client has not taken; otherwise it would offer it for a quarter of an hour.
func (c *connection) abandon() {
	if tcp, ok := c.net.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

func timeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

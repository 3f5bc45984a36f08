package ws

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/session"
	"github.com/edumatrix/interlinked/shared/auth"
)

// connection is one socket.
type connection struct {
	server *Server
	socket *websocket.Conn
}

var errTooLarge = errors.New("frame too large")

// introduction is what a client says in its first frame.
type introduction struct {
	Token  string `json:"token"`
	Resume bool   `json:"resume"`
	Device string `json:"device"`

	user auth.User // whose token it is
}

// authenticate waits for the first frame, which says who this is, and whether it comes back; what else comes is refused
// until then.
func (c *connection) authenticate(ctx context.Context) (said introduction, ok bool) {
	_ = c.socket.SetReadDeadline(time.Now().Add(c.server.options.Handshake))
	const tries = 8
	for range tries {
		text, err := c.read()
		if errors.Is(err, errTooLarge) {
			c.end(hub.TooLarge)
			c.drain()
			return said, false
		}
		if err != nil {
			if timeout(err) {
				c.end(hub.HandshakeTimeout)
			}
			return said, false
		}
		f, err := session.ReadFrame(text)
		if err == nil && f.Type != "auth" {
			err = refusal.New(refusal.Unauthorized, `first a frame {"id":"0","type":"auth","data":{"token":"…"}}`)
		}
		if err != nil {
			c.write(session.Failed(f.ID, access.Refusal(err)))
			continue
		}
		if said = (introduction{}); json.Unmarshal(f.Data, &said) != nil {
			c.write(session.Failed(f.ID, refusal.New(refusal.InvalidField, `data has to be {"token":"…"}`)))
			continue
		}
		if said.user, err = c.server.options.Access.User(ctx, said.Token); err != nil {
			c.write(session.Failed(f.ID, access.Refusal(err)))
			c.end(hub.Unauthorized)
			c.drain()
			return said, false
		}
		c.write(session.Done(f.ID))
		return said, true
	}
	c.end(hub.Unauthorized)
	return said, false
}

// run is the session of a user, until the client goes or the hub ends it.
func (c *connection) run(ctx context.Context, user auth.User, o session.Opening) {
	s, err := c.server.options.Mesh.Open(user, o)
	if err != nil {
		c.end(reasonOf(err))
		c.drain()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.writeAll(s.Conn())
		_ = c.socket.NetConn().SetReadDeadline(time.Now())
	}()
	c.readAll(ctx, s)
	<-written
	reason, _ := s.Conn().Reason()
	if reason != hub.Lost && reason != hub.Slow {
		c.drain()
	}
	cancel()
	s.Close()
	c.server.options.Metrics.Closed.WithLabelValues(reason.Text).Inc()
	c.server.options.Log.Debug("ws: a connection has ended", "user", user.ID, "connection", s.Conn().ID,
		"reason", reason.Text)
}

// readAll hands the client's frames over one by one, until the connection ends.
func (c *connection) readAll(ctx context.Context, s *session.Session) {
	conn := s.Conn()
	alive := func() {
		_ = c.socket.SetReadDeadline(time.Now().Add(2 * c.server.options.Ping))
		if ended(conn) {
			_ = c.socket.SetReadDeadline(time.Now())
		}
	}
	alive()
	c.socket.SetPongHandler(func(string) error { alive(); return nil })
	for !ended(conn) {
		text, err := c.read()
		switch {
		case errors.Is(err, errTooLarge):
			conn.Send(session.Failed("", refusal.New(refusal.Malformed, "the frame is larger than %d bytes",
				c.server.options.MaxFrame)))
			conn.Close(hub.TooLarge)
		case timeout(err):
			conn.Close(hub.NoPong)
		case err != nil:
			conn.Close(hub.Lost)
		default:
			alive()
			c.server.options.Metrics.Frames.Inc()
			s.Handle(ctx, text)
		}
	}
}

func ended(conn *hub.Conn) bool {
	select {
	case <-conn.Done():
		return true
	default:
		return false
	}
}

// drain reads what the client still sends, until it hangs up: a socket that is closed with something unread in it
// takes back what was written last, the reason of the end.
func (c *connection) drain() {
	_ = c.socket.NetConn().SetReadDeadline(time.Now().Add(grace))
	_, _ = io.Copy(io.Discard, c.socket.NetConn())
}

// read gives one frame. A larger one than is taken is not read to its end.
func (c *connection) read() ([]byte, error) {
	kind, r, err := c.socket.NextReader()
	if err != nil {
		return nil, err
	}
	most := c.server.options.MaxFrame
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(text)) > most:
		return nil, errTooLarge
	case kind != websocket.TextMessage:
		return []byte("a binary frame"), nil // answered as what it is: no JSON
	}
	return text, nil
}

const (
	// writeWait is how long a client may take to let one frame through.
	writeWait = 10 * time.Second
	// grace is how long what is left may take when the connection ends.
	grace = time.Second
	// burst is how many frames are taken from the queue at once.
	burst = 64
)

// writeAll writes what waits in the queue until the connection ends, and then why.
func (c *connection) writeAll(conn *hub.Conn) {
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-conn.Done():
			// A write that is stuck must not hold up the end.
			_ = c.socket.NetConn().SetWriteDeadline(time.Now().Add(grace))
		case <-ended:
		}
	}()
	ping := time.NewTicker(c.server.options.Ping)
	defer ping.Stop()
	for {
		select {
		case <-conn.Wake():
		case <-ping.C:
			if c.socket.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeWait)) != nil {
				conn.Close(hub.Lost)
			}
		}
		reason, ending := conn.Reason()
		if ending && (reason == hub.Slow || reason == hub.Lost) {
			c.end(reason)
			return
		}
		wait := writeWait
		if ending {
			wait = grace
		}
		frames := conn.Take(burst)
		for _, frame := range frames {
			_ = c.socket.SetWriteDeadline(time.Now().Add(wait))
			if c.socket.WriteMessage(websocket.TextMessage, frame) != nil {
				conn.Close(hub.Lost)
				c.abandon()
				return
			}
		}
		if ending && len(frames) < burst {
			c.end(reason)
			return
		}
	}
}

// write sends a frame before there is a queue.
func (c *connection) write(frame []byte) {
	_ = c.socket.SetWriteDeadline(time.Now().Add(writeWait))
	_ = c.socket.WriteMessage(websocket.TextMessage, frame)
}

// end tells the client why, as far as it lets that through.
func (c *connection) end(r hub.Reason) {
	if r == hub.Lost || c.socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(r.Code, r.Text),
		time.Now().Add(grace)) != nil {
		c.abandon()
	}
}

// abandon lets the system forget what the client has not taken; it would offer it for a quarter of an hour.
func (c *connection) abandon() {
	if tcp, ok := c.socket.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}

func timeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

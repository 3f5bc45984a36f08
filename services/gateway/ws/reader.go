package ws

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/protocol"
)

var (
	errTooLarge = errors.New("message too large")
	errOther    = errors.New("message of the other kind")
)

// messageKind is the kind of WebSocket message that contains the frames of an encoding.
var messageKind = [frame.Encodings]int{frame.JSON: websocket.TextMessage, frame.Protobuf: websocket.BinaryMessage}

// readAll passes the client's messages to the handler, one by one, until the connection ends. If the gateway has ended
// the connection, readAll then waits for the client's close frame, until the deadline that finish sets.
func (c *connection) readAll(ctx context.Context, s *protocol.Handler) {
	defer c.server.options.Guard.Recover("reader", func() { c.conn.Close(hub.Internal) })
	for !c.conn.Ended() {
		text, err := c.read()
		switch {
		case errors.Is(err, errTooLarge):
			c.conn.Send(frame.Refused("", refusal.New(refusal.Malformed, "the message is larger than %d bytes",
				frame.MaxMessage)))
			c.conn.Close(hub.TooLarge)
		case errors.Is(err, errOther):
			s.HandleOther(len(text))
		case errors.As(err, new(*websocket.CloseError)):
			c.conn.Close(hub.Left)
			return
		case err != nil:
			c.conn.Close(hub.Lost)
			return
		default:
			c.server.options.Metrics.Frames.Inc()
			s.Handle(ctx, text)
		}
	}
	c.discard()
}

// read returns one message. If a message is larger than frame.MaxMessage, read stops early and returns errTooLarge. A
// message of the wrong kind (see messageKind) is returned with errOther.
func (c *connection) read() ([]byte, error) {
	kind, r, err := c.socket.NextReader()
	if err != nil {
		return nil, err
	}
	text := make([]byte, 0, 512)
	for {
		n, err := r.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
		c.alive()
		switch {
		case len(text) > frame.MaxMessage:
			return nil, errTooLarge
		case errors.Is(err, io.EOF) && kind != messageKind[c.encoding]:
			return text, errOther
		case errors.Is(err, io.EOF):
			return text, nil
		case err != nil:
			return nil, err
		}
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
	}
}

// alive records that something was received from the client.
func (c *connection) alive() {
	c.seen.Store(time.Now().UnixNano())
	c.unconfirmed.Store(0)
}

package ws

import (
	"io"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/protocol"
)

// grace bounds each of the two parts of a connection's end. In the first part, the frames that wait and the close frame
// are written. In the second part, the client's close frame is read.
const grace = 5 * time.Second

// cut sets the last write deadline of the connection, which also ends a write that is blocked. The deadline is the time
// of the first call of cut plus the constant grace.
func (c *connection) cut() {
	if c.ending.Swap(true) {
		return
	}
	_ = c.net.SetWriteDeadline(time.Now().Add(grace))
}

// end sends the close frame, unless the reason is Lost. If the reason is Lost, or the frame cannot be sent within
// grace, end calls abandon.
func (c *connection) end(r hub.Reason) {
	c.cut()
	text := websocket.FormatCloseMessage(r.Code, r.Text)
	if r == hub.Lost || c.send(append(appendHeader(nil, opClose, true, len(text)), text...)) != nil {
		c.abandon()
	}
}

// endFor ends the connection for a reason. The writer calls it when all waiting frames have been written.
func (c *connection) endFor(r hub.Reason) {
	c.end(r)
	if r == hub.Lost || r == hub.Slow {
		c.finish(0)
	} else {
		c.finish(grace)
	}
}

// endAfter ends the connection after a write has failed.
func (c *connection) endAfter(err error) {
	if timeout(err) && !c.conn.Ended() {
		c.conn.Close(hub.Slow)
	}
	c.conn.Close(hub.Lost)
	c.abandon()
	c.finish(0)
}

// endAfterPanic ends the connection after a panic of the writer. If a frame was written in part, no close frame can
// follow.
func (c *connection) endAfterPanic() {
	c.conn.Close(hub.Internal)
	if c.torn {
		c.abandon()
		c.finish(0)
		return
	}
	c.end(hub.Internal)
	c.finish(grace)
}

// finish makes the reader end within the given time. Until then the client may send its close frame. Only the first
// call has an effect.
func (c *connection) finish(wait time.Duration) {
	if !c.finished {
		c.finished = true
		_ = c.net.SetReadDeadline(time.Now().Add(wait))
		c.written.Done()
	}
}

// reject sends the reason why a connection is refused, and the close frame. Then it waits until the client closes, or
// grace has passed. The caller closes the socket.
func (c *connection) reject(replyTo string, rejected *protocol.RejectedError) {
	if rejected.Refusal != nil {
		c.sendFrame(frame.Refused(replyTo, rejected.Refusal))
	}
	c.sendClosing(rejected.Reason)
	c.end(rejected.Reason)
	c.drain()
}

// sendFrame sends a frame of a connection that has no queue yet.
func (c *connection) sendFrame(f frame.Frame) {
	text, _ := f.Encode(c.encoding) // a frame of the gateway itself; its encoding never fails
	_ = c.send(append(appendHeader(nil, operation[c.encoding], true, len(text)), text...))
}

// sendClosing sends the frame "closing" on a connection that has no queue yet.
func (c *connection) sendClosing(r hub.Reason) {
	if f, ok := r.Frame(); ok {
		c.sendFrame(f)
	}
}

// drain reads until the client closes, or grace has passed. If a socket with unread data were closed, the system would
// discard the data written last, which includes the close frame.
func (c *connection) drain() {
	_ = c.net.SetReadDeadline(time.Now().Add(grace))
	c.discard()
}

// discard reads frames until the client closes, or the read deadline passes.
func (c *connection) discard() {
	for {
		_, r, err := c.socket.NextReader()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r)
	}
}

// abandon sets an option of the socket. With this option, closing the socket discards all data that the client has not
// acknowledged. Without it, the system would retransmit the data for minutes.
func (c *connection) abandon() {
	if tcp, ok := c.net.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

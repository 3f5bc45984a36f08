package protocol

import (
	"sync"

	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// controls sends the replies to control frames in the order in which the frames came, although some replies wait for an
// owner.
type controls struct {
	mu      sync.Mutex
	waiting []*control
}

type control struct {
	done  bool
	reply frame.Frame
}

// begin adds a control frame. The returned function must be called once, with the reply to that frame. The reply is
// queued for the client as soon as the replies to all earlier control frames are queued.
func (c *controls) begin(conn *hub.Conn) (reply func(frame.Frame)) {
	one := &control{}
	c.mu.Lock()
	c.waiting = append(c.waiting, one)
	c.mu.Unlock()
	return func(f frame.Frame) {
		c.mu.Lock()
		defer c.mu.Unlock()
		one.done, one.reply = true, f
		for len(c.waiting) > 0 && c.waiting[0].done {
			conn.Send(c.waiting[0].reply)
			c.waiting[0] = nil
			c.waiting = c.waiting[1:]
		}
	}
}

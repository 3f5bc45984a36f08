package ws

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// slots is the number of parts into which the period between pings is divided. Each connection is in a random slot, so
// that pings are spread over the period even if all clients connected at once.
const slots = 64

// wheel pings every connection once in each period, with one goroutine and one timer for all connections.
type wheel struct {
	period time.Duration

	mu      sync.Mutex
	slots   [slots]map[*connection]struct{}
	count   int
	running bool
}

func (w *wheel) add(c *connection) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.slot = rand.N(slots)
	if w.slots[c.slot] == nil {
		w.slots[c.slot] = map[*connection]struct{}{}
	}
	w.slots[c.slot][c] = struct{}{}
	w.count++
	if !w.running {
		w.running = true
		go w.run()
	}
}

func (w *wheel) remove(c *connection) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.slots[c.slot], c)
	w.count--
}

// run sends pings until there are no connections.
func (w *wheel) run() {
	tick := time.NewTicker(max(w.period/slots, time.Millisecond))
	defer tick.Stop()
	var due []*connection
	for n := 0; ; n = (n + 1) % slots {
		<-tick.C
		w.mu.Lock()
		if w.count == 0 {
			w.running = false
			w.mu.Unlock()
			return
		}
		due = due[:0]
		for c := range w.slots[n] {
			due = append(due, c)
		}
		w.mu.Unlock()
		now := time.Now()
		for _, c := range due {
			c.ping(now)
		}
		clear(due)
	}
}

// ping makes the writer send the client a ping. If the client has given no sign of life for two periods, ping closes
// the connection instead.
func (c *connection) ping(now time.Time) {
	defer c.server.options.Guard.Recover("ping", func() { c.conn.Close(hub.Internal) })
	if now.UnixNano()-c.seen.Load() >= int64(2*c.server.options.Ping) {
		c.conn.Close(hub.NoPong)
		return
	}
	c.pingDue.Store(true)
	c.conn.Kick()
}

// pinged answers a ping of the client. If several pings wait for an answer, only the newest one is answered.
func (c *connection) pinged(payload string) error {
	c.alive()
	if c.conn == nil {
		return c.send(append(appendHeader(nil, opPong, true, len(payload)), payload...))
	}
	c.mu.Lock()
	c.pong = append(c.pong[:0], payload...)
	if c.pong == nil {
		c.pong = []byte{}
	}
	c.mu.Unlock()
	c.conn.Kick()
	return nil
}

// appendControls appends a ping if one is due, and a pong if a ping of the client waits for one.
func (c *connection) appendControls(b []byte) []byte {
	if c.pingDue.Load() && c.pingDue.Swap(false) {
		b = appendHeader(b, opPing, true, 0)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pong != nil {
		b = append(appendHeader(b, opPong, true, len(c.pong)), c.pong...)
		c.pong = nil
	}
	return b
}

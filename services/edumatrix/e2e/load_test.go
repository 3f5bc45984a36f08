//go:build integration

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"
)

// crowd consists of pairs of users. If the mesh has two gateways, the sender and the receiver of a pair are connected
// to different gateways. The clients share the machine with the mesh. To use little CPU time, they search the bytes of
// frames instead of decoding JSON.
type crowd struct {
	pairs []pair
	load  atomic.Pointer[load] // the current load
	loads int
}

type pair struct {
	sender *websocket.Conn
	frame  string // the first part of every frame that sends a message
}

// newCrowd connects two users for each conversation.
func newCrowd(b *testing.B, m *mesh, conversations int) *crowd {
	b.Helper()
	c := &crowd{pairs: make([]pair, conversations)}
	var mu sync.Mutex
	var all []*websocket.Conn
	b.Cleanup(func() {
		for _, conn := range all {
			_ = conn.Close()
		}
	})
	connect := func(user string, gateway int) (*websocket.Conn, error) {
		header := http.Header{"Authorization": {"Bearer " + mint(b, user, time.Hour)}}
		conn, _, err := websocket.DefaultDialer.DialContext(b.Context(), m.socket(gateway), header)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		all = append(all, conn)
		mu.Unlock()
		if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"id":"connect","type":"connect"}`)); err != nil {
			return nil, err
		}
		_, err = awaitFrame(conn, `"reply_to":"connect"`)
		return conn, err
	}
	var setup errgroup.Group
	setup.SetLimit(32)
	for i := range c.pairs {
		setup.Go(func() error {
			receiver := someone("receiver")
			sending, err := connect(someone("sender"), i)
			if err != nil {
				return err
			}
			receiving, err := connect(receiver, i+1)
			if err != nil {
				return err
			}
			start := fmt.Sprintf(`{"id":"start","type":"chat.start_direct","command_id":"start","data":{"user_id":%q}}`, receiver)
			if err := sending.WriteMessage(websocket.TextMessage, []byte(start)); err != nil {
				return err
			}
			reply, err := awaitFrame(sending, `"kind":"committed"`)
			if err != nil {
				return err
			}
			_, id, _ := strings.Cut(string(reply), `"stream":"conversation:`)
			id, _, _ = strings.Cut(id, `"`)
			c.pairs[i] = pair{sending, fmt.Sprintf(`{"type":"chat.send_message","data":{"conversation_id":%q,"body":"`, id)}
			go c.read(sending, false)
			go c.read(receiving, true)
			return nil
		})
	}
	if err := setup.Wait(); err != nil {
		b.Fatalf("connect the clients of the benchmark: %v", err)
	}
	return c
}

// awaitFrame reads frames until one contains the text, and returns that frame. It returns an error after a minute.
func awaitFrame(conn *websocket.Conn, text string) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	for {
		_, frame, err := conn.ReadMessage()
		if err != nil {
			return nil, fmt.Errorf("await a frame with %s: %w", text, err)
		}
		if bytes.Contains(frame, []byte(text)) {
			return frame, conn.SetReadDeadline(time.Time{})
		}
	}
}

// bodyStart is the beginning of the field body of every message. The body "load 3.1042" belongs to message 1042 of load
// 3.
var bodyStart = []byte(`"body":"load `)

// read counts the events that a receiver gets, or the refusals that a sender gets, until the connection ends.
func (c *crowd) read(conn *websocket.Conn, receiver bool) {
	var frame bytes.Buffer
	for {
		_, r, err := conn.NextReader()
		if err != nil {
			return
		}
		frame.Reset()
		if _, err := frame.ReadFrom(r); err != nil {
			return
		}
		l := c.load.Load()
		switch {
		case l == nil:
		case !receiver:
			if bytes.Contains(frame.Bytes(), []byte(`"error":{`)) {
				l.refuse(frame.String())
			}
		default:
			if _, rest, found := bytes.Cut(frame.Bytes(), bodyStart); found {
				l.take(rest)
			}
		}
	}
}

// load is a series of messages that are sent at a constant rate.
type load struct {
	name    []byte // the number of this load with a dot, such as "3."; it follows "load " in the bodies
	rate    int
	begin   time.Time
	arrived []atomic.Int64 // by message: the time from begin to its arrival, in ns; 0 if it has not arrived

	seen, twice, refused atomic.Int64
	mu                   sync.Mutex
	refusal              string // the first refusal
}

// take counts a message that has arrived. The parameter rest is the part of the frame after "load ", which begins with
// the numbers of the load and of the message.
func (l *load) take(rest []byte) {
	digits, ours := bytes.CutPrefix(rest, l.name)
	end := bytes.IndexByte(digits, '"')
	if !ours || end < 0 {
		return // a message of an earlier load
	}
	n, err := strconv.Atoi(string(digits[:end]))
	if err != nil || n >= len(l.arrived) {
		return
	}
	if l.arrived[n].CompareAndSwap(0, int64(time.Since(l.begin))) {
		l.seen.Add(1)
	} else {
		l.twice.Add(1)
	}
}

func (l *load) refuse(frame string) {
	l.mu.Lock()
	if l.refusal == "" {
		l.refusal = frame
	}
	l.mu.Unlock()
	l.refused.Add(1)
}

// due returns the time at which message n must be sent, counted from l.begin.
func (l *load) due(n int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(l.rate)
}

// measured is the result of a load.
type measured struct {
	asked                      int // the requested rate, in messages per second
	sent, seen, twice, refused int
	refusal                    string
	p50, p99                   time.Duration
	rate                       float64 // the rate of arrival, in messages per second
	cpu                        map[string]time.Duration
}

// maxDelay is the maximum 99th percentile of delays with which a rate counts as sustained.
const maxDelay = 250 * time.Millisecond

// held reports whether the mesh sustained the rate: every message arrived once, p99 was at most maxDelay, and the rate
// of arrival was more than 95 % of the requested rate.
func (m measured) held() bool {
	return m.seen == m.sent && m.twice == 0 && m.refused == 0 && m.p99 <= maxDelay && m.rate > 0.95*float64(m.asked)
}

func (m measured) String() string {
	kept := "held"
	if !m.held() {
		kept = fmt.Sprintf("not held (%d lost, %d duplicated, %d refused)", m.sent-m.seen, m.twice, m.refused)
		if m.refusal != "" {
			kept += " " + m.refusal
		}
	}
	return fmt.Sprintf("%5d msg/s sent, %5.0f arrived, %s, p50 %.1f ms, p99 %.1f ms, %s", m.asked, m.rate, kept,
		milliseconds(m.p50), milliseconds(m.p99), perMessage(m.cpu, m.seen))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// send sends messages at a constant rate, without waiting for outcomes. The parameter conversations is a number n: the
// messages are sent in a random third of the first n conversations of the crowd. If the messages cannot be sent within
// twice the time in the parameter lasting, send stops sending. At the end, it waits until all messages have arrived or
// no more arrive (see settle). The delay of a message counts from the time at which it was due, not from the time at
// which it was sent.
func (c *crowd) send(b *testing.B, cpu func() map[string]time.Duration, conversations, rate int, lasting time.Duration) measured {
	b.Helper()
	c.loads++
	count := int(lasting.Seconds() * float64(rate))
	l := &load{name: fmt.Appendf(nil, "%d.", c.loads), rate: rate, arrived: make([]atomic.Int64, count)}
	random := rand.New(rand.NewPCG(1, uint64(c.loads))) // a fixed seed, so that every mesh gets the same messages
	senders := random.Perm(conversations)[:(conversations+2)/3]
	before := cpu()
	l.begin = time.Now()
	c.load.Store(l)
	sent := 0
	for sent < count && time.Since(l.begin) < 2*lasting {
		for now := time.Since(l.begin); sent < count && l.due(sent) <= now; sent++ {
			p := c.pairs[senders[random.IntN(len(senders))]]
			id := fmt.Sprintf("%d.%d", c.loads, sent)
			frame := p.frame + "load " + id + `"},"id":"` + id + `","command_id":"load-` + id + `"}`
			if err := p.sender.WriteMessage(websocket.TextMessage, []byte(frame)); err != nil {
				b.Fatalf("send message %s: %v", id, err)
			}
		}
		time.Sleep(500 * time.Microsecond)
	}
	l.settle(sent)
	m := measured{asked: rate, sent: sent, seen: int(l.seen.Load()), twice: int(l.twice.Load()),
		refused: int(l.refused.Load()), refusal: l.refusal, cpu: spent(before, cpu())}
	var delays []time.Duration
	var last time.Duration
	for n := range l.arrived {
		if at := time.Duration(l.arrived[n].Load()); at > 0 {
			delays, last = append(delays, at-l.due(n)), max(last, at)
		}
	}
	if slices.Sort(delays); len(delays) > 0 {
		m.p50, m.p99 = delays[len(delays)/2], delays[len(delays)*99/100]
		m.rate = float64(len(delays)) / last.Seconds()
	}
	return m
}

// settle waits until every message has arrived or was refused, or until no message has arrived for 5 s.
func (l *load) settle(sent int) {
	seen, since := int64(-1), time.Now()
	for time.Since(since) < 5*time.Second {
		now := l.seen.Load()
		if now+l.refused.Load() >= int64(sent) {
			return
		}
		if now != seen {
			seen, since = now, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

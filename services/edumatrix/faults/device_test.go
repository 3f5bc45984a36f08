//go:build integration

package faults

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/shared/client"
)

// device is a client program of a user. It connects to one gateway after the other, and records the events that it
// receives.
type device struct {
	p             *population
	user          string
	name          string
	gateway       int
	subscriptions []string // the authors to whom the device subscribes

	mu       sync.Mutex
	random   *rand.Rand
	current  *connection
	waiting  map[string][]chan Answer // command id → channels that wait for an outcome after "queued"
	messages []sentMessage            // the user's own newest messages
	slow     time.Time                // the time until which the device reads nothing
}

type sentMessage struct{ conversation, id string }

// connection is a connection for which the reply to connect has arrived, and the session to which it belongs.
type connection struct {
	*client.Client
	session *Session
}

// stay keeps the device connected until the run ends. Sometimes the device begins a new session instead of resuming the
// last one, like a program that was restarted.
func (d *device) stay() {
	var last *connection
	for d.p.ctx.Err() == nil {
		var c *connection
		if last != nil && d.draw(8) > 0 {
			c = d.resume(last)
		} else {
			last = nil
			c = d.dial()
		}
		if c != nil {
			last = c
			d.live(c)
		}
		sleep(d.p.ctx, time.Duration(50+d.draw(250))*time.Millisecond)
		d.gateway++ // use the next gateway
	}
	if last != nil {
		last.Close()
	}
}

func (d *device) draw(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.random.IntN(n)
}

const dialTime = 8 * time.Second

func (d *device) url() string { return d.p.sockets[d.gateway%len(d.p.sockets)] }

// dial begins a session. It returns nil if the device cannot connect.
func (d *device) dial() *connection {
	ctx, cancel := context.WithTimeout(d.p.ctx, dialTime)
	defer cancel()
	s := &Session{User: d.user, Device: d.name, Dialed: time.Now(), Subscriptions: d.subscriptions}
	var rooms []string
	for _, author := range d.subscriptions {
		rooms = append(rooms, "author:"+author)
	}
	c, err := client.Dial(ctx, client.Options{URL: d.url(), Token: d.p.tokens[d.user], Rooms: rooms,
		OnEvent:   func(e client.Event) { d.see(s, e) },
		OnOutcome: func(o client.Outcome) { d.passOn(o) }})
	if err != nil {
		return nil
	}
	s.Ready = time.Now()
	if len(rooms) > 0 {
		s.Subscribed = s.Ready
	}
	d.p.h.Begin(s)
	return &connection{c, s}
}

// resume resumes the session of an earlier connection. It returns nil if the device cannot connect, or if the gateway
// does not resume the session.
func (d *device) resume(last *connection) *connection {
	ctx, cancel := context.WithTimeout(d.p.ctx, dialTime)
	defer cancel()
	before := d.p.h.Received(last.session) // does not change any more, because the last connection has ended
	c, err := last.Redial(ctx, d.url())
	if err != nil {
		return nil
	}
	stands := c.Connected()
	if !stands.Resumed { // the gateway has not accepted the client's resume token
		d.p.h.End(last.session, "not resumed")
		c.Close()
		return nil
	}
	d.p.h.Resume(last.session, before, stands.NotRecovered)
	return &connection{c, last.session}
}

// live makes a connection the current connection of the device, until the connection ends.
func (d *device) live(c *connection) {
	d.mu.Lock()
	d.current = c
	d.mu.Unlock()
	select {
	case <-c.Done():
		d.p.h.End(c.session, c.Err().Error())
	case <-d.p.ctx.Done():
	}
	d.mu.Lock()
	d.current = nil
	d.mu.Unlock()
}

// session returns the current connection, or nil.
func (d *device) session() *connection {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current
}

// await returns the current connection, and waits for one if necessary. It returns nil when ctx ends.
func (d *device) await(ctx context.Context) *connection {
	for ctx.Err() == nil {
		if c := d.session(); c != nil {
			select {
			case <-c.Done():
			default:
				return c
			}
		}
		sleep(ctx, 10*time.Millisecond)
	}
	return nil
}

// see records an event. If the device is slow, see waits first, which blocks the connection.
func (d *device) see(s *Session, e client.Event) {
	d.mu.Lock()
	until := d.slow
	d.mu.Unlock()
	sleep(d.p.ctx, time.Until(until))
	var data struct {
		Body           string `json:"body"`
		Title          string `json:"title"`
		ConversationID string `json:"conversation_id"`
		MessageID      string `json:"message_id"`
	}
	_ = json.Unmarshal(e.Data, &data) // missing fields stay empty; Check reports them, because they differ from the log
	text := data.Body
	if text == "" {
		text = data.Title
	}
	d.p.h.See(s, Seen{Type: e.Type, Stream: e.Stream, Version: e.Version, ID: e.ID, Actor: e.Actor, Redacted: e.Redacted,
		Text: text})
	if e.Type == "chat.message_sent" && e.Actor == d.user {
		d.mu.Lock()
		d.messages = append(d.messages[max(0, len(d.messages)-30):], sentMessage{data.ConversationID, data.MessageID})
		d.mu.Unlock()
	}
}

// slowDown makes the device read nothing for the given time.
func (d *device) slowDown(while time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = time.Now().Add(while)
}

// own returns a random message among the newest messages of the user, and false if there is no message.
func (d *device) own(r *rand.Rand) (sentMessage, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.messages) == 0 {
		return sentMessage{}, false
	}
	return d.messages[r.IntN(len(d.messages))], true
}

// passOn passes an outcome that arrived after the answer "queued" to the workers that wait for it.
func (d *device) passOn(o client.Outcome) {
	a := Answer{Kind: o.Kind, Stream: o.Stream, Version: o.Version}
	if o.Error != nil {
		a.Code = o.Error.Code
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waiting[o.CommandID] {
		select {
		case w <- a:
		default: // the worker already has an outcome
		}
	}
}

// expect returns a channel that receives the outcome of a command if the outcome arrives after the answer "queued".
// After a call of the returned function forget, the channel receives nothing.
func (d *device) expect(id string) (outcome chan Answer, forget func()) {
	outcome = make(chan Answer, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting[id] = append(d.waiting[id], outcome)
	return outcome, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		left := slices.DeleteFunc(d.waiting[id], func(c chan Answer) bool { return c == outcome })
		if d.waiting[id] = left; len(left) == 0 {
			delete(d.waiting, id)
		}
	}
}

func conversationOf(stream string) string { return strings.TrimPrefix(stream, "conversation:") }

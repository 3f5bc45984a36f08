// Package client speaks the mesh's WebSocket protocol from Go: commands with their outcomes, queries, events. The
// terminal client, the end-to-end tests and the benchmark are written on it.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
)

// Options say where to connect and who connects.
type Options struct {
	// URL of the gateway's socket, "ws://localhost:3001/ws".
	URL string
	// Token proves who connects.
	Token string
	// FirstFrame sends the token as browsers have to: in the first frame instead of the Authorization header.
	FirstFrame bool
	// Resume is the mark of an earlier connection, see Mark: what was missed since comes first. Events that came after the
	// mark come again, and have to be told by their versions; Redial does that.
	Resume string
	// Rooms, with Resume, are looked at again.
	Rooms []string
	// Session, with Resume, is that of the earlier connection, see Session.
	Session string
	// Device is what the user is to know this client by, among their sessions.
	Device string
	// OnMark is called with each mark, after the events up to it, as OnEvent is.
	OnMark func(string)
	// OnEvent is called with each event, in order, on the goroutine that reads: it must not wait for this client.
	OnEvent func(Event)
	// OnSignal is called with each signal, as OnEvent is.
	OnSignal func(Signal)
	// OnOutcome is called with outcomes that come after "queued".
	OnOutcome func(Outcome)
	// Header is sent with the handshake (Origin and the like).
	Header http.Header
	// Silence is how long the mesh may send nothing, not even a ping, before the connection counts as lost; a minute
	// when 0. The mesh pings every 25 s, and the client pings it twice in that time.
	Silence time.Duration
}

// MaxFrame is how long a frame may be that the mesh takes, in bytes.
const MaxFrame = 256 << 10

// Event is a fact as clients see it.
type Event struct {
	Type     string          `json:"event"`
	Stream   string          `json:"stream"`
	Version  int64           `json:"version"`
	ID       string          `json:"id"`
	Time     time.Time       `json:"time"`
	Actor    string          `json:"actor"`
	Redacted bool            `json:"redacted"`
	Data     json.RawMessage `json:"data"`
}

// Signal is what is true for a moment only, such as that somebody is typing.
type Signal struct {
	Name  string          `json:"signal"`
	Room  string          `json:"room"`
	Actor string          `json:"actor"`
	Data  json.RawMessage `json:"data"`
}

// Outcome of a command: committed, unchanged, or queued (not known yet).
type Outcome struct {
	CommandID string `json:"command_id"`
	Kind      string `json:"outcome"`
	Stream    string `json:"stream"`
	Version   int64  `json:"version"`
	Error     *Error `json:"error"`
}

// Error is what the mesh answers to a wish it does not grant. Code is stable.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// ErrClosed says that the connection ended before the answer came; what was sent may have been done. Send it again
// with the same command id.
var ErrClosed = errors.New("connection closed")

// Reply is the frame that answers a request.
type Reply struct {
	Re      string          `json:"re"`
	OK      bool            `json:"ok"`
	Error   *Error          `json:"error"`
	Data    json.RawMessage `json:"data"`
	Outcome string          `json:"outcome"`
	Command string          `json:"command_id"`
	Stream  string          `json:"stream"`
	Version int64           `json:"version"`
}

// Client is one connection. It is safe for concurrent use.
type Client struct {
	conn    *websocket.Conn
	options Options

	write sync.Mutex

	mu      sync.Mutex
	next    int
	waiting map[string]chan Reply

	// Of the goroutine that reads, and of everybody once it has ended.
	seen   map[string]int64 // newest version of each stream
	before map[string]int64 // the same of the connection that this one follows

	mark    string
	session string
	resumed *Resumed

	ready chan struct{}
	done  chan struct{}
	err   error
}

// Dial connects, proves who connects, and returns when the mesh has opened all the user's rooms. With Resume, what was
// missed has come before.
func Dial(ctx context.Context, o Options) (*Client, error) {
	c, err := dial(ctx, o, nil)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// dial gives, with an error, a connection that has ended, if there was one.
func dial(ctx context.Context, o Options, before map[string]int64) (*Client, error) {
	header := o.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if o.Token != "" && !o.FirstFrame {
		header.Set("Authorization", "Bearer "+o.Token)
	}
	query := url.Values{}
	if o.Resume != "" {
		query.Set("resume", "true")
	}
	if o.Device != "" {
		query.Set("device", o.Device)
	}
	address := o.URL
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	conn, response, err := websocket.DefaultDialer.DialContext(ctx, address, header)
	if err != nil {
		if response != nil {
			return nil, fmt.Errorf("connect to %s: %s: %w", o.URL, response.Status, refusal(response, err))
		}
		return nil, fmt.Errorf("connect to %s: %w", o.URL, err)
	}
	c := &Client{conn: conn, options: o, waiting: map[string]chan Reply{}, mark: o.Resume,
		seen: map[string]int64{}, before: before, ready: make(chan struct{}), done: make(chan struct{})}
	go c.read()
	if o.FirstFrame {
		if _, err := c.Request(ctx, map[string]any{"type": "auth", "data": map[string]string{"token": o.Token}}); err != nil {
			c.Close()
			return c, fmt.Errorf("authenticate at %s: %w", o.URL, err)
		}
	}
	if o.Resume != "" {
		if err := c.resume(ctx); err != nil {
			c.Close()
			return c, fmt.Errorf("resume at %s: %w", o.URL, err)
		}
	}
	select {
	case <-c.ready:
		return c, nil
	case <-c.done:
		return c, fmt.Errorf("connect to %s: %w", o.URL, c.Err())
	case <-ctx.Done():
		c.Close()
		return c, fmt.Errorf("connect to %s: rooms were not opened: %w", o.URL, ctx.Err())
	}
}

// refusal finds the mesh's own error in the answer to a refused handshake.
func refusal(r *http.Response, err error) error {
	defer r.Body.Close()
	var body struct{ Error *Error }
	if json.NewDecoder(r.Body).Decode(&body) == nil && body.Error != nil {
		return body.Error
	}
	return err
}

// Command sends a wish under a new command id and waits for its outcome. A refusal is an *Error.
func (c *Client) Command(ctx context.Context, name string, data any) (Outcome, error) {
	return c.CommandAs(ctx, uuid.NewString(), name, data)
}

// CommandAs sends a wish under the id given: the same id again gets the first outcome again.
func (c *Client) CommandAs(ctx context.Context, id, name string, data any) (Outcome, error) {
	r, err := c.Request(ctx, map[string]any{"type": name, "data": data, "command_id": id})
	if err != nil {
		return Outcome{CommandID: id}, err
	}
	return Outcome{CommandID: r.Command, Kind: r.Outcome, Stream: r.Stream, Version: r.Version}, nil
}

// Signal sends a signal to those who are in its room now. A refusal is an *Error.
func (c *Client) Signal(ctx context.Context, name string, data any) error {
	_, err := c.Request(ctx, map[string]any{"type": name, "data": data})
	return err
}

// Query asks and reads the answer into what answer points to.
func (c *Client) Query(ctx context.Context, name string, data, answer any) error {
	r, err := c.Request(ctx, map[string]any{"type": name, "data": data})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(r.Data, answer); err != nil {
		return fmt.Errorf("%s: answer: %w", name, err)
	}
	return nil
}

// Request sends any frame under an id of its own and waits for the frame that answers it.
func (c *Client) Request(ctx context.Context, frame map[string]any) (Reply, error) {
	answer := make(chan Reply, 1)
	c.mu.Lock()
	c.next++
	id := "c" + strconv.Itoa(c.next)
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()

	frame["id"] = id
	body, err := json.Marshal(frame)
	if err != nil {
		return Reply{}, fmt.Errorf("%v: %w", frame["type"], err)
	}
	if len(body) > MaxFrame {
		return Reply{}, fmt.Errorf("%v: the frame has %d bytes, at most %d are taken", frame["type"], len(body), MaxFrame)
	}
	if err := c.Write(body); err != nil {
		return Reply{}, err
	}
	select {
	case r := <-answer:
		return r.outcome()
	case <-c.done:
		err = c.Err()
	case <-ctx.Done():
		err = fmt.Errorf("%v: no answer: %w", frame["type"], ctx.Err())
	}
	// A reply may be followed at once by the end of the connection, and select prefers neither.
	select {
	case r := <-answer:
		return r.outcome()
	default:
		return Reply{}, err
	}
}

func (r Reply) outcome() (Reply, error) {
	if r.Error != nil {
		return r, r.Error
	}
	return r, nil
}

// Write sends bytes as they are; replies without an id that was asked for are dropped.
func (c *Client) Write(frame []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	if err := c.conn.WriteMessage(websocket.TextMessage, frame); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

// Close ends the connection and waits until its reader has ended.
func (c *Client) Close() {
	c.write.Lock()
	_ = c.conn.WriteControl(websocket.CloseMessage,
		websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	c.write.Unlock()
	_ = c.conn.Close()
	<-c.done
}

// Abort drops the connection without a word, as a lost network does.
func (c *Client) Abort() {
	_ = c.conn.NetConn().Close()
	<-c.done
}

// Done is closed when the connection has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; it wraps ErrClosed and the *websocket.CloseError, if the mesh sent one.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return fmt.Errorf("%w: %w", ErrClosed, c.err)
	default:
		return nil
	}
}

func (c *Client) read() {
	silence := c.options.Silence
	if silence == 0 {
		silence = time.Minute
	}
	var extended time.Time
	heard := func() { // once a second: setting a deadline costs more than reading a small frame
		if now := time.Now(); now.Sub(extended) > min(time.Second, silence/8) {
			extended = now
			_ = c.conn.SetReadDeadline(now.Add(silence))
		}
	}
	answer := c.conn.PingHandler()
	c.conn.SetPingHandler(func(payload string) error { heard(); return answer(payload) })
	c.conn.SetPongHandler(func(string) error { heard(); return nil })
	var ping *time.Timer
	var pinging sync.Mutex // ping is set before it fires
	pinging.Lock()
	ping = time.AfterFunc(silence*2/5, func() {
		_ = c.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		pinging.Lock()
		defer pinging.Unlock()
		ping.Reset(silence * 2 / 5)
	})
	pinging.Unlock()
	defer func() {
		close(c.done)
		pinging.Lock()
		defer pinging.Unlock()
		ping.Stop()
	}()
	heard()
	for {
		_, text, err := c.conn.ReadMessage()
		if err != nil {
			c.err = err
			return
		}
		heard()
		if err := c.take(text); err != nil {
			c.err = err
			_ = c.conn.Close()
			return
		}
	}
}

// received is any frame of the mesh: which kind it is shows by the keys that are there.
type received struct {
	Reply
	Re      *string         `json:"re"`
	Outcome json.RawMessage `json:"outcome"` // a text in a reply, an object in a frame of its own
	Event   string          `json:"event"`
	ID      string          `json:"id"`
	Time    time.Time       `json:"time"`
	Actor   string          `json:"actor"`
	Redact  bool            `json:"redacted"`
	At      string          `json:"at"`
	Ready   bool            `json:"ready"`
	Session string          `json:"session"`
	Signal  string          `json:"signal"`
	Room    string          `json:"room"`
}

func (c *Client) take(text []byte) error {
	var f received
	if err := json.Unmarshal(text, &f); err != nil {
		return fmt.Errorf("a frame of the mesh cannot be read: %w", err)
	}
	if f.At != "" {
		c.marked(f.At)
	}
	switch {
	case f.Re != nil:
		f.Reply.Re = *f.Re
		if n := len(f.Outcome); n > 2 && f.Outcome[0] == '"' {
			f.Reply.Outcome = string(f.Outcome[1 : n-1]) // a word without escapes
		}
		c.mu.Lock()
		answer := c.waiting[f.Reply.Re]
		c.mu.Unlock()
		if answer != nil {
			select {
			case answer <- f.Reply:
			default: // a second answer under one id is not ours to judge
			}
		}
	case f.Event != "":
		c.event(Event{Type: f.Event, Stream: f.Stream, Version: f.Version, ID: f.ID, Time: f.Time, Actor: f.Actor,
			Redacted: f.Redact, Data: f.Data})
	case f.Signal != "":
		if c.options.OnSignal != nil {
			c.options.OnSignal(Signal{Name: f.Signal, Room: f.Room, Actor: f.Actor, Data: f.Data})
		}
	case f.Ready:
		c.mu.Lock()
		c.session = f.Session
		c.mu.Unlock()
		select {
		case <-c.ready:
		default:
			close(c.ready)
		}
	case len(f.Outcome) > 0:
		var o Outcome
		if c.options.OnOutcome != nil && json.Unmarshal(f.Outcome, &o) == nil {
			c.options.OnOutcome(o)
		}
	}
	return nil
}

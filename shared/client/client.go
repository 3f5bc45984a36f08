// Package client speaks the mesh's WebSocket protocol from Go: commands with their outcomes, queries, events. The
// terminal client, the end-to-end tests and the benchmark are written on it.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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
	// TokenInFrame sends the token as browsers have to: in the connect frame instead of the Authorization header.
	TokenInFrame bool
	// Protobuf speaks the subprotocol edumatrix.v1.proto. Callers see no difference: data is JSON.
	Protobuf bool
	// ResumeToken is that of an earlier connection, see Client.ResumeToken: what was missed since comes first. Events that
	// came after the token come again, and have to be told by their versions; Redial does that.
	ResumeToken string
	// Rooms are subscribed to.
	Rooms []string
	// SessionID is that of the earlier connection, see Client.SessionID.
	SessionID string
	// Device is what the user is to know this client by, among their sessions.
	Device string
	// OnResumeToken is called with each resume token, after the events up to it, as OnEvent is. When the user has ended the
	// session it is called with an empty one: what was stored is to be forgotten.
	OnResumeToken func(string)
	// OnEvent is called with each event, in order, on the goroutine that reads: it must not wait for this client.
	OnEvent func(Event)
	// OnSignal is called with each signal, as OnEvent is.
	OnSignal func(Signal)
	// OnOutcome is called with outcomes that come after "queued".
	OnOutcome func(Outcome)
	// OnNotRecovered is called with each room of which the client is not given what it missed, as OnEvent is.
	OnNotRecovered func(room string)
	// OnUnsubscribed is called when the gateway ends the subscription to a room, as OnEvent is.
	OnUnsubscribed func(room string, why Error)
	// OnTokenExpiring is called when the token has so long left; Authenticate renews it.
	OnTokenExpiring func(left time.Duration)
	// Header is sent with the handshake (Origin and the like).
	Header http.Header
	// Silence is how long the mesh may send nothing, not even a ping, before the connection counts as lost; a minute
	// when 0. The mesh sends a ping and a heartbeat every 25 s, and the client pings it twice in that time.
	Silence time.Duration
}

// MaxFrame is how long a frame may be that the mesh takes, in bytes.
const MaxFrame = 256 << 10

// Event is a fact as clients see it.
type Event struct {
	Type    string    `json:"event"`
	Stream  string    `json:"stream"`
	Version int64     `json:"version"`
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Actor   string    `json:"actor"`
	// CommandID is of the command that caused the event, where it was one of this user's.
	CommandID string          `json:"command_id"`
	Redacted  bool            `json:"redacted"`
	Data      json.RawMessage `json:"data"`
}

// Signal is what is true for a moment only, such as that somebody is typing.
type Signal struct {
	Name  string          `json:"signal"`
	Room  string          `json:"room"`
	Actor string          `json:"actor"`
	Data  json.RawMessage `json:"data"`
}

// Outcome of a command: committed, unchanged, queued (not known yet), refused or failed.
type Outcome struct {
	CommandID string `json:"command_id"`
	Kind      string `json:"kind"`
	Stream    string `json:"stream"`
	Version   int64  `json:"version"`
	Error     *Error `json:"error"`
}

// Error is what the mesh answers to what it does not do. Code is stable.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// Field is the path of the field that was wrong; empty where it is not about one.
	Field string `json:"field"`
	// RetryAfterMS is how long to wait before the same is sent again; 0 where waiting does not help.
	RetryAfterMS int64 `json:"retry_after_ms"`
	// TraceID names the trace, where it is recorded.
	TraceID string `json:"trace_id"`
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Queued is the code of the error that Command returns when the mesh has received a command and not decided it: the outcome
// follows, see Options.OnOutcome.
const Queued = "queued"

// ErrClosed says that the connection ended before the answer came; what was sent may have been done. Send it again
// with the same command id.
var ErrClosed = errors.New("connection closed")

// Reply is the frame that answers a request.
type Reply struct {
	ReplyTo string          `json:"reply_to"`
	OK      bool            `json:"ok"`
	Data    json.RawMessage `json:"data"`
	Outcome *Outcome        `json:"outcome"`
	Error   *Error          `json:"error"`
}

// Client is one connection. It is safe for concurrent use.
type Client struct {
	conn    *websocket.Conn
	codec   codec
	options Options

	write sync.Mutex

	mu      sync.Mutex
	next    int
	waiting map[string]call

	// Of the goroutine that reads, and of everybody once it has ended.
	seen   map[string]int64 // newest version of each stream
	before map[string]int64 // the same of the connection that this one follows

	token     string
	connected Connected
	ended     bool   // the user has ended the session
	closing   *Error // that the mesh sent before it closed the connection

	done chan struct{}
	err  error
}

// call is a request that waits for its reply.
type call struct {
	kind  string // the type of the frame
	reply chan Reply
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
	if o.Token != "" && !o.TokenInFrame {
		header.Set("Authorization", "Bearer "+o.Token)
	}
	dialer := *websocket.DefaultDialer
	codec, err := newCodec(o.Protobuf)
	if err != nil {
		return nil, err
	}
	dialer.Subprotocols = []string{codec.subprotocol()}
	conn, response, err := dialer.DialContext(ctx, o.URL, header)
	if err != nil {
		if response != nil {
			return nil, fmt.Errorf("connect to %s: %s: %w", o.URL, response.Status, refusal(response, err))
		}
		return nil, fmt.Errorf("connect to %s: %w", o.URL, err)
	}
	c := &Client{conn: conn, codec: codec, options: o, waiting: map[string]call{}, token: o.ResumeToken,
		seen: map[string]int64{}, before: before, done: make(chan struct{})}
	go c.read()
	if err := c.connect(ctx); err != nil {
		c.Close()
		return c, fmt.Errorf("connect to %s: %w", o.URL, err)
	}
	return c, nil
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

// Command sends a command under a new id and waits for its outcome. A refusal is an *Error.
func (c *Client) Command(ctx context.Context, name string, data any) (Outcome, error) {
	return c.CommandAs(ctx, uuid.NewString(), name, data)
}

// CommandAs sends a command under the id given: the same id again gets the first outcome again.
func (c *Client) CommandAs(ctx context.Context, id, name string, data any) (Outcome, error) {
	r, err := c.Request(ctx, map[string]any{"type": name, "data": data, "command_id": id})
	switch {
	case r.Outcome == nil && err == nil:
		err = fmt.Errorf("%s: the reply has no outcome", name)
		fallthrough
	case r.Outcome == nil:
		return Outcome{CommandID: id}, err
	case err == nil && r.Outcome.Kind == Queued:
		err = &Error{Code: Queued, Message: "the command was received and is not decided yet; its outcome follows"}
	}
	return *r.Outcome, err
}

// Authenticate renews the token of the connection, for the same user. A refusal is an *Error; the old token then goes on.
func (c *Client) Authenticate(ctx context.Context, token string) error {
	_, err := c.Request(ctx, map[string]any{"type": "authenticate", "data": map[string]string{"token": token}})
	return err
}

// Subscribe subscribes to rooms. Their current values have come as events when it returns. A refusal of all of them is an
// *Error.
func (c *Client) Subscribe(ctx context.Context, rooms ...string) (Subscribed, error) {
	r, err := c.Request(ctx, map[string]any{"type": "subscribe", "data": map[string][]string{"rooms": rooms}})
	var s Subscribed
	if err == nil {
		err = json.Unmarshal(r.Data, &s)
	}
	return s, err
}

// Subscribed are the rooms that a client is subscribed to, and those that it may not subscribe to.
type Subscribed struct {
	Rooms   []string `json:"rooms"`
	Refused []struct {
		Room  string `json:"room"`
		Error Error  `json:"error"`
	} `json:"refused"`
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
	kind := fmt.Sprint(frame["type"])
	answer := make(chan Reply, 1)
	c.mu.Lock()
	c.next++
	id := "c" + strconv.Itoa(c.next)
	c.waiting[id] = call{kind, answer}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()

	frame["id"] = id
	body, err := c.codec.encode(frame)
	if err != nil {
		return Reply{}, fmt.Errorf("%s: %w", kind, err)
	}
	if len(body) > MaxFrame {
		return Reply{}, fmt.Errorf("%s: the frame has %d bytes, at most %d are taken", kind, len(body), MaxFrame)
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
		err = fmt.Errorf("%s: no answer: %w", kind, ctx.Err())
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
	switch {
	case r.Error != nil:
		return r, r.Error
	case r.Outcome != nil && r.Outcome.Error != nil:
		return r, r.Outcome.Error
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
	if err := c.conn.WriteMessage(c.codec.messageKind(), frame); err != nil {
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

// Err says why the connection ended; it wraps ErrClosed, the *websocket.CloseError, if the mesh sent one, and the *Error
// of its closing frame.
func (c *Client) Err() error {
	select {
	case <-c.done:
		if c.closing != nil {
			return fmt.Errorf("%w: %w: %w", ErrClosed, c.err, c.closing)
		}
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
			if websocket.IsCloseError(err, sessionEnded) {
				c.endSession()
			}
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

// received is any frame of the mesh. Type says which of the fields are there.
type received struct {
	Type string `json:"type"`

	ReplyTo string   `json:"reply_to"`
	OK      bool     `json:"ok"`
	Outcome *Outcome `json:"outcome"`
	Error   *Error   `json:"error"`

	Event // with the data of every frame that has some

	Signal      string `json:"signal"`
	Room        string `json:"room"`
	ResumeToken string `json:"resume_token"`
	ExpiresInMS int64  `json:"expires_in_ms"`
	Code        int    `json:"code"` // of closing
}

// take takes the frames of one message.
func (c *Client) take(message []byte) error {
	err := c.codec.decode(message, c.kindOf, c.takeFrame)
	if err != nil {
		return fmt.Errorf("a frame of the mesh cannot be read: %w", err)
	}
	return nil
}

// kindOf is the type of the request that a reply answers; empty: nobody waits for it.
func (c *Client) kindOf(replyTo string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting[replyTo].kind
}

// takeFrame takes one frame. Those of a type that it does not know are ignored, as the protocol wants it.
func (c *Client) takeFrame(f *received) error {
	switch f.Type {
	case "reply":
		return c.takeReply(f)
	case "event":
		c.event(f.Event)
	case "signal":
		if c.options.OnSignal != nil {
			c.options.OnSignal(Signal{Name: f.Signal, Room: f.Room, Actor: f.Actor, Data: f.Data})
		}
	case "outcome":
		if c.options.OnOutcome != nil && f.Outcome != nil {
			c.options.OnOutcome(*f.Outcome)
		}
	case "heartbeat":
		if f.ResumeToken != "" {
			c.resumable(f.ResumeToken)
		}
	case "not_recovered":
		if c.options.OnNotRecovered != nil {
			c.options.OnNotRecovered(f.Room)
		}
	case "unsubscribed":
		if c.options.OnUnsubscribed != nil && f.Error != nil {
			c.options.OnUnsubscribed(f.Room, *f.Error)
		}
	case "token_expiring":
		if c.options.OnTokenExpiring != nil {
			c.options.OnTokenExpiring(time.Duration(f.ExpiresInMS) * time.Millisecond)
		}
	case "closing":
		c.closing = f.Error
		if f.Code == sessionEnded {
			c.endSession()
		}
	}
	return nil
}

func (c *Client) takeReply(f *received) error {
	c.mu.Lock()
	of, waits := c.waiting[f.ReplyTo]
	c.mu.Unlock()
	if !waits {
		return nil
	}
	if of.kind == "connect" && f.OK { // here, so that its resume token comes in its place among the events
		var connected Connected
		if err := json.Unmarshal(f.Data, &connected); err != nil {
			return err
		}
		c.mu.Lock()
		c.connected = connected
		c.mu.Unlock()
		c.resumable(connected.ResumeToken)
	}
	select {
	case of.reply <- Reply{ReplyTo: f.ReplyTo, OK: f.OK, Data: f.Data, Outcome: f.Outcome, Error: f.Error}:
	default: // a second answer under one id is not ours to judge
	}
	return nil
}

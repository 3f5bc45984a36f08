// Package client is a Go client of the WebSocket protocol: commands with their outcomes, queries, events, signals. The
// terminal client, the end-to-end tests and the benchmark use it.
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

// Options configure a connection. URL and Token are required.
type Options struct {
	// URL is the URL of the gateway's socket, such as "ws://localhost:3001/ws".
	URL string
	// Token is the JSON Web Token of the user.
	Token string
	// TokenInFrame sends the token in the connect frame instead of the Authorization header, as browsers have to.
	TokenInFrame bool
	// Protobuf chooses the subprotocol edumatrix.v1.proto instead of edumatrix.v1.json. Callers send and get data as
	// JSON nevertheless, except with Client.Write.
	Protobuf bool
	// ResumeToken is the resume token of an earlier connection, see Client.ResumeToken. The missed events are
	// delivered before Dial returns. Events that the earlier connection got after the token are delivered again; a
	// program recognizes these events by their versions, and Redial drops them.
	ResumeToken string
	// Rooms are the rooms to subscribe to. If there are none, the session keeps its subscriptions.
	Rooms []string
	// SessionID is the id of the session that the connection continues, see Connected.SessionID; empty: the connection
	// begins a session.
	SessionID string
	// Device is the name of this client among the sessions of its user.
	Device string
	// OnResumeToken is called with each resume token, after the events that the token covers, on the same goroutine as
	// OnEvent. OnResumeToken is also called with an empty token when the user has ended the session: the program must
	// delete its stored token.
	OnResumeToken func(string)
	// OnEvent is called with each event, in order, on the goroutine that reads. It must not call a method of this client
	// that waits for a reply or for the end of the connection, because such a method waits for this goroutine.
	OnEvent func(Event)
	// OnSignal is called with each signal, on the same goroutine as OnEvent.
	OnSignal func(Signal)
	// OnOutcome is called with the outcomes of commands that were answered with "queued", on the same goroutine as
	// OnEvent.
	OnOutcome func(Outcome)
	// OnNotRecovered is called with each room whose missed events are not sent, on the same goroutine as OnEvent.
	OnNotRecovered func(room string)
	// OnUnsubscribed is called when the gateway ends the subscription to a room, on the same goroutine as OnEvent.
	OnUnsubscribed func(room string, why Error)
	// OnTokenExpiring is called with the time left before the token expires, on the same goroutine as OnEvent.
	// Authenticate, called on another goroutine, renews the token.
	OnTokenExpiring func(left time.Duration)
	// Header is sent with the handshake. It may contain Origin, for example.
	Header http.Header
	// Silence (0: a minute) is how long the gateway may send nothing, not even a ping, before the connection counts as
	// lost. The gateway sends a ping and a heartbeat every 25 s, and the client pings the gateway twice within Silence.
	Silence time.Duration
}

// MaxFrame is the maximum size of a frame that a gateway accepts, in bytes.
const MaxFrame = 256 << 10

// Event is an event frame.
type Event struct {
	Type    string    `json:"event"`
	Stream  string    `json:"stream"`
	Version int64     `json:"version"`
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Actor   string    `json:"actor"`
	// CommandID is the id of the command that caused the event, if this user sent the command.
	CommandID string          `json:"command_id"`
	Redacted  bool            `json:"redacted"`
	Data      json.RawMessage `json:"data"`
}

// Signal is a signal frame, such as "is typing".
type Signal struct {
	Name  string          `json:"signal"`
	Room  string          `json:"room"`
	Actor string          `json:"actor"`
	Data  json.RawMessage `json:"data"`
}

// Outcome is the outcome of a command. Its Kind is committed, unchanged, queued (not decided yet), refused or failed.
type Outcome struct {
	CommandID string `json:"command_id"`
	Kind      string `json:"kind"`
	Stream    string `json:"stream"`
	Version   int64  `json:"version"`
	Error     *Error `json:"error"`
}

// Error is an error that the gateway sends, such as that of a refused request. Code is stable.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// Field is the path of the wrong field; empty if the error is not about a field.
	Field string `json:"field"`
	// RetryAfterMS is the time in milliseconds after which the request may be sent again; 0 if waiting does not help.
	RetryAfterMS int64 `json:"retry_after_ms"`
	// TraceID is the id of the trace, if it is recorded.
	TraceID string `json:"trace_id"`
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Queued is the kind of the outcome, and the code of the error, that Command returns for a command that was received
// and is not decided yet. The final outcome is passed to Options.OnOutcome later.
const Queued = "queued"

// ErrClosed is wrapped by the errors of Client.Err and Client.Write, and of requests whose reply did not arrive before
// the connection ended. A command may have been decided nevertheless: send it again with the same command id.
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

	// The fields seen and before are used by the goroutine that reads and, after its end, by other goroutines.
	seen   map[string]int64 // newest version of each stream that this connection got
	before map[string]int64 // newest version of each stream that the connections before this one got

	token     string
	connected Connected
	ended     bool   // the user has ended the session
	closing   *Error // the error of the closing frame

	done chan struct{}
	err  error
}

// call is a request that waits for its reply.
type call struct {
	kind  string // the type of the frame
	reply chan Reply
}

// Dial connects, and returns when the connection is in every room of its user. With a resume token, the missed events
// are delivered before Dial returns. The error wraps an *Error if the gateway has refused the connection.
func Dial(ctx context.Context, o Options) (*Client, error) {
	c, err := dial(ctx, o, nil)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// dial is like Dial, but ignores events that earlier connections got. The parameter before contains the newest version
// of each stream that the earlier connections got. If dial fails after it has connected, it returns the ended
// connection with the error.
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

// refusal returns the gateway's error in the response to a refused handshake, or err if there is none.
func refusal(r *http.Response, err error) error {
	defer r.Body.Close()
	var body struct{ Error *Error }
	if json.NewDecoder(r.Body).Decode(&body) == nil && body.Error != nil {
		return body.Error
	}
	return err
}

// Command sends a command under a new id and waits for its outcome. The error is an *Error if the command is refused,
// has failed, or is not decided yet (see Queued).
func (c *Client) Command(ctx context.Context, name string, data any) (Outcome, error) {
	return c.CommandAs(ctx, uuid.NewString(), name, data)
}

// CommandAs is Command with a given id. A command that is sent again with the same id gets the first outcome.
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

// Authenticate renews the token of the connection, for the same user. If the gateway refuses the token, the error is
// an *Error and the old token stays valid.
func (c *Client) Authenticate(ctx context.Context, token string) error {
	_, err := c.Request(ctx, map[string]any{"type": "authenticate", "data": map[string]string{"token": token}})
	return err
}

// Subscribe subscribes to rooms. The current values of the rooms are delivered as events before Subscribe returns. If
// all rooms are refused, the error is an *Error.
func (c *Client) Subscribe(ctx context.Context, rooms ...string) (Subscribed, error) {
	r, err := c.Request(ctx, map[string]any{"type": "subscribe", "data": map[string][]string{"rooms": rooms}})
	var s Subscribed
	if err == nil {
		err = json.Unmarshal(r.Data, &s)
	}
	return s, err
}

// Subscribed contains the rooms that a client is subscribed to, and the rooms whose subscription was refused.
type Subscribed struct {
	Rooms   []string `json:"rooms"`
	Refused []struct {
		Room  string `json:"room"`
		Error Error  `json:"error"`
	} `json:"refused"`
}

// Signal sends a signal to all other connections in its room. If the signal is refused, the error is an *Error.
func (c *Client) Signal(ctx context.Context, name string, data any) error {
	_, err := c.Request(ctx, map[string]any{"type": name, "data": data})
	return err
}

// Query sends a query and decodes the reply into answer, which is a pointer. If the query is refused, the error is an
// *Error.
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

// Request sends a frame of any type and waits for the reply. It sets the frame's key "id" to a new id. If the request
// is refused, the error is an *Error.
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
		return Reply{}, fmt.Errorf("%s: the frame has %d bytes, at most %d are allowed", kind, len(body), MaxFrame)
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
	// The connection may end right after the reply. If both channels are ready, select may choose the end.
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

// Write sends a message of encoded frames without changing it. The client drops the replies to these frames, because it
// passes on only replies to frames that Request has sent.
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

// Abort closes the socket without a close frame, like a lost network connection, and waits until its reader has ended.
func (c *Client) Abort() {
	_ = c.conn.NetConn().Close()
	<-c.done
}

// Done returns a channel that is closed when the connection has ended. Err then returns the reason.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns the reason why the connection has ended; nil before the end. It wraps ErrClosed, the
// *websocket.CloseError if there was a WebSocket close frame, and the *Error of the gateway's frame "closing" if there
// was one.
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
	extendDeadline := func() { // not for every frame: setting a deadline costs more than reading a small frame
		if now := time.Now(); now.Sub(extended) > min(time.Second, silence/8) {
			extended = now
			_ = c.conn.SetReadDeadline(now.Add(silence))
		}
	}
	answer := c.conn.PingHandler()
	c.conn.SetPingHandler(func(payload string) error { extendDeadline(); return answer(payload) })
	c.conn.SetPongHandler(func(string) error { extendDeadline(); return nil })
	var ping *time.Timer
	ended := false
	var pinging sync.Mutex // guards ping and ended; the timer's function waits until ping is set
	pinging.Lock()
	ping = time.AfterFunc(silence*2/5, func() {
		_ = c.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		pinging.Lock()
		defer pinging.Unlock()
		if !ended {
			ping.Reset(silence * 2 / 5)
		}
	})
	pinging.Unlock()
	defer func() {
		close(c.done)
		pinging.Lock()
		defer pinging.Unlock()
		ended = true
		ping.Stop()
	}()
	extendDeadline()
	for {
		_, text, err := c.conn.ReadMessage()
		if err != nil {
			c.err = err
			if websocket.IsCloseError(err, sessionEnded) {
				c.endSession()
			}
			return
		}
		extendDeadline()
		if err := c.take(text); err != nil {
			c.err = err
			_ = c.conn.Close()
			return
		}
	}
}

// received is a frame from a gateway. Type determines which fields are set.
type received struct {
	Type string `json:"type"`

	ReplyTo string   `json:"reply_to"`
	OK      bool     `json:"ok"`
	Outcome *Outcome `json:"outcome"`
	Error   *Error   `json:"error"`

	Event // other frames also use its fields Actor and Data

	Signal      string `json:"signal"`
	Room        string `json:"room"`
	ResumeToken string `json:"resume_token"`
	ExpiresInMS int64  `json:"expires_in_ms"`
	Code        int    `json:"code"` // of a closing frame
}

// take handles the frames of one message.
func (c *Client) take(message []byte) error {
	err := c.codec.decode(message, c.kindOf, c.takeFrame)
	if err != nil {
		return fmt.Errorf("a frame of the gateway cannot be read: %w", err)
	}
	return nil
}

// kindOf returns the type of the request that a reply answers; empty if no request waits for the reply.
func (c *Client) kindOf(replyTo string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting[replyTo].kind
}

// takeFrame handles one frame. It ignores frames of unknown types, as the protocol requires.
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
	if of.kind == "connect" && f.OK { // handled here, so that OnResumeToken is called in the order of the frames
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
	default: // a second reply to one id is ignored
	}
	return nil
}

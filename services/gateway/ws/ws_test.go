package ws_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/internal/schema"
	"github.com/edumatrix/interlinked/services/gateway/lease"
	"github.com/edumatrix/interlinked/services/gateway/protocol"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// tokens is a verifier for which a token is the name of its user, with these exceptions: "bad" is expired, "unknown"
// cannot be checked, a token that begins with "panic" makes the check panic, "short-<name>" is valid for less than a
// minute, and "brief-<name>" is valid for 100 ms.
type tokens struct{}

func (tokens) Verify(_ context.Context, token string) (auth.User, error) {
	if token == "unknown" {
		return auth.User{}, refusal.New(refusal.Unavailable, "the keys cannot be fetched")
	}
	if strings.HasPrefix(token, "panic") {
		panic("injected into the check of a token")
	}
	if token == "bad" {
		return auth.User{}, refusal.New(refusal.Unauthorized, "the token is expired")
	}
	if name, short := strings.CutPrefix(token, "short-"); short {
		return auth.User{ID: name, Expires: time.Now().Add(50*time.Second - auth.Leeway)}, nil
	}
	if name, brief := strings.CutPrefix(token, "brief-"); brief {
		return auth.User{ID: name, Expires: time.Now().Add(100*time.Millisecond - auth.Leeway)}, nil
	}
	return auth.User{ID: token}, nil
}

// mesh is a gateway without Kafka. It decides each command at once, unless the function silent selects the command: a
// command whose body contains "refuse" is refused, any other one is committed.
type mesh struct {
	catalog *catalog.Catalog
	hub     *hub.Hub
	intake  *intake.Intake
	sockets *ws.Server
	log     *syncBuffer
	chat    *fake.Owner
	owners  map[string]*fake.Owner
	keeper  *fake.Owner // the owner that stores which connections are open
	url     string
	silent  func(envelope.Command) bool // reports whether a command gets no outcome

	mu      sync.Mutex
	version catalog.Version
}

type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (m *mesh) Publish(_ string, messages ...*message.Message) error {
	for _, msg := range messages {
		c, err := envelope.ReadCommand(msg)
		if err != nil {
			return err
		}
		if m.silent != nil && m.silent(c) {
			continue
		}
		m.mu.Lock()
		m.version++
		r := envelope.Outcome{Actor: c.Actor, CommandID: c.ID, Source: "chat", Type: c.Type, Stream: c.Stream,
			Kind: envelope.Committed, Version: m.version, Position: catalog.Position(m.version)}
		m.mu.Unlock()
		if strings.Contains(string(c.Body), "refuse") {
			r.Kind, r.Code, r.Text = envelope.Refused, refusal.NotAMember, "you are not in it"
		}
		m.intake.Resolve(r)
	}
	return nil
}

func (m *mesh) Close() error { return nil }

// setup contains the settings that a test can change.
type setup struct {
	mesh   *mesh
	tracer trace.Tracer
	intake intake.Options
	// connectWithin is how long the reply to connect may take (0: 30 s).
	connectWithin time.Duration
	restoreWithin time.Duration
	reportEvery   time.Duration // how often to report connections; a call to the keeper may take twice as long
	lease         time.Duration // how long a subscription lasts unless it is renewed
	listener      func(net.Listener) net.Listener
	handler       func(*ws.Server) http.Handler
}

func begin(t testing.TB, o ws.Options, h hub.Options, change ...func(*setup)) *mesh {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	m := &mesh{catalog: c, log: &syncBuffer{}, chat: fake.NewOwner(c, "chat"), owners: map[string]*fake.Owner{}}
	log := slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	set := &setup{mesh: m, tracer: noop.Tracer{}, listener: func(l net.Listener) net.Listener { return l },
		handler: func(s *ws.Server) http.Handler { return s }}
	for _, f := range change {
		f(set)
	}
	tracer := set.tracer
	owners, peers := map[string]meshv1connect.OwnerServiceClient{}, map[string]string{}
	for _, name := range c.Owners() {
		owner := fake.NewOwner(c, name)
		if name == "chat" {
			owner = m.chat
		}
		if name == c.Connections() {
			m.keeper = owner
		}
		m.owners[name] = owner
		server := httptest.NewServer(owner.Handler())
		t.Cleanup(server.Close)
		owners[name], peers[name] = meshv1connect.NewOwnerServiceClient(server.Client(), server.URL), server.URL
	}
	h.Catalog = c
	m.hub = hub.New(h)
	set.intake.Catalog, set.intake.Publisher, set.intake.Log = c, m, log
	set.intake.Ready = func(string) bool { return true }
	m.intake = intake.New(set.intake)
	known := make(chan struct{})
	close(known)
	report := lease.New(lease.Options{Log: log, Every: set.reportEvery,
		Keeper: meshv1connect.NewConnectionServiceClient(http.DefaultClient, peers["presence"])})
	members := rooms.New(rooms.Options{Catalog: c, Hub: m.hub, Owners: owners, Lease: set.lease, Log: log,
		Unsubscribed: func(c *hub.Conn) { report.Subscribed(c.ID) },
		Known:        func(string) <-chan struct{} { return known }})
	o.Access = &access.Access{Verifier: tokens{}, Origins: []string{"https://school.example"}, Log: log}
	o.Log, o.Guard = log, guard.New(log, nil)
	o.Mesh = &protocol.Parts{Catalog: c, Access: o.Access, ConnectWithin: set.connectWithin, RestoreWithin: set.restoreWithin, Hub: m.hub, Rooms: members, Intake: m.intake, Lease: report, Guard: o.Guard,
		Queries: query.New(c, peers, http.DefaultClient, tracer), Tracer: tracer, Log: log}
	m.sockets = ws.New(o)
	server := httptest.NewUnstartedServer(set.handler(m.sockets))
	server.Listener = set.listener(server.Listener)
	server.Start()
	m.url = "ws" + strings.TrimPrefix(server.URL, "http") + "/ws"
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = m.intake.Run(ctx) })
	running.Go(func() { _ = members.Run(ctx) })
	running.Go(func() { _ = m.hub.Run(ctx) })
	running.Go(func() { _ = report.Run(ctx) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(m.log.String())
		}
		m.hub.Close(hub.Shutdown)
		m.sockets.Wait(context.Background())
		server.Close()
		cancel()
		running.Wait()
	})
	return m
}

func (m *mesh) dial(t testing.TB, o client.Options) *client.Client {
	t.Helper()
	if o.URL = m.url; o.Token == "" {
		o.Token = "alice"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// raw opens a socket on which a test writes and reads frames itself. With a token, raw also sends the connect frame.
func (m *mesh) raw(t testing.TB, token string) *websocket.Conn {
	t.Helper()
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	socket, _, err := websocket.DefaultDialer.Dial(m.url, header)
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(30*time.Second)))
	if token != "" {
		write(t, socket, connectFrame)
	}
	return socket
}

const connectFrame = `{"id":"connect","type":"connect"}`

// received is a frame of the gateway.
type received struct {
	Type        string
	ReplyTo     string `json:"reply_to"`
	OK          bool
	Event       string
	Error       *client.Error
	Outcome     *client.Outcome
	Data        json.RawMessage
	Room        string
	Code        int
	ResumeToken string `json:"resume_token"`
}

// refused returns the error of a refused request, or nil if the request was not refused.
func (f received) refused() *client.Error {
	if f.Outcome != nil {
		return f.Outcome.Error
	}
	return f.Error
}

// read returns the next frame that is not a heartbeat. It checks that every frame matches the AsyncAPI document.
func read(t testing.TB, socket *websocket.Conn) received {
	t.Helper()
	for {
		_, text, err := socket.ReadMessage()
		require.NoError(t, err)
		require.NoError(t, schema.CheckReceived(text))
		var f received
		require.NoError(t, json.Unmarshal(text, &f), "%s", text)
		if f.Type != "heartbeat" {
			return f
		}
	}
}

// ready reads the reply to connect, and returns its data.
func ready(t testing.TB, socket *websocket.Conn) (c client.Connected) {
	t.Helper()
	f := read(t, socket)
	require.Equal(t, "connect", f.ReplyTo, "%+v", f)
	require.True(t, f.OK, "%+v", f.Error)
	require.NoError(t, json.Unmarshal(f.Data, &c))
	return c
}

func write(t testing.TB, socket *websocket.Conn, text string) {
	t.Helper()
	require.NoError(t, socket.WriteMessage(websocket.TextMessage, []byte(text)))
}

// closed reads until the socket is closed, and returns the close code.
func closed(t testing.TB, socket *websocket.Conn) int {
	t.Helper()
	for {
		_, _, err := socket.ReadMessage()
		var end *websocket.CloseError
		if errors.As(err, &end) {
			return end.Code
		}
		require.NoError(t, err)
	}
}

const send = `{"id":"c1","type":"chat.send_message","data":{"conversation_id":"g","body":"hi"}}`

func TestCommand_IsAnsweredByItsOutcome(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for _, first := range []bool{false, true} {
		c := m.dial(t, client.Options{TokenInFrame: first})
		o, err := c.Command(t.Context(), "chat.send_message", map[string]string{"conversation_id": "g", "body": "hi"})
		require.NoError(t, err)
		require.Equal(t, "committed", o.Kind)
		require.Equal(t, "conversation:g", o.Stream)
		require.NotZero(t, o.Version)
		_, err = c.Command(t.Context(), "chat.send_message", map[string]string{"conversation_id": "g", "body": "refuse"})
		var refused *client.Error
		require.ErrorAs(t, err, &refused)
		require.Equal(t, refusal.NotAMember, refused.Code)
		require.Equal(t, "you are not in it", refused.Message)
	}
}

func TestCommand_WithoutAnIDGetsOneInTheReply(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	socket := m.raw(t, "alice")
	ready(t, socket)
	write(t, socket, send)
	f := read(t, socket)
	require.True(t, f.OK)
	require.True(t, catalog.ValidID(f.Outcome.CommandID))
}

// The data of connect must be checked as strictly as the data of later frames, except that unknown fields must be
// ignored, because a newer client may send them.
func TestConnect_ItsDataIsReadStrictly(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for data, wrong := range map[string]struct{ field, text string }{
		`{"token":"alice","token":"bob"}`:            {"token", "is there twice"},
		`{"token":"alice","rooms":"presence:bob"}`:   {"rooms", "has to be a list"},
		`{"token":["alice"]}`:                        {"token", "has to be text"},
		`{"token":"alice","resume_token":7}`:         {"resume_token", "has to be text"},
		`{"token":"alice","rooms":["x"],"rooms":[]}`: {"rooms", "is there twice"},
		`["alice"]`: {"", "not a JSON object"},
		`{"token":"alice","rooms":[` + manyRooms(501) + `]}`: {"rooms", "at most 500"},
	} {
		socket := m.raw(t, "")
		write(t, socket, `{"id":"connect","type":"connect","data":`+data+`}`)
		f := read(t, socket)
		require.Equal(t, "connect", f.ReplyTo, data)
		require.NotNil(t, f.Error, data)
		require.Equal(t, wrong.field, f.Error.Field, data)
		require.Contains(t, f.Error.Message, wrong.text, data)
		require.Equal(t, hub.ProtocolError.Code, closed(t, socket))
	}
	socket := m.raw(t, "")
	write(t, socket, `{"id":"connect","type":"connect","data":{"token":"alice","color":{"a":[1,{"b":null}]},"Token":7}}`)
	ready(t, socket)
}

func manyRooms(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%q", fmt.Sprint("presence:", i)))
	}
	return strings.Join(all, ",")
}

// A client sends an invalid header Authorization in the handshake. The refusal must have a status, a code and a text
// that name the problem.
func TestHandshake_OddRequestsAreRefusedByName(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for _, test := range []struct {
		query    string
		header   http.Header
		status   int
		code     string
		wantText string
	}{
		{"", http.Header{"Authorization": {"Bearer alice", "Bearer alice"}}, 400, refusal.Malformed, "the header Authorization 2 times"},
		{"", http.Header{"Authorization": {"Bearer"}}, 401, refusal.Unauthorized, "no token after Bearer"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http"+strings.TrimPrefix(m.url, "ws")+test.query, nil)
		require.NoError(t, err)
		if test.header != nil {
			r.Header = test.header
		}
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		_ = response.Body.Close()
		require.Equal(t, test.status, response.StatusCode, "%s %s", test.query, body)
		var f received
		require.NoError(t, json.Unmarshal(body, &f))
		require.Equal(t, test.code, f.Error.Code, test.query)
		require.Contains(t, f.Error.Message, test.wantText, test.query)
	}
}

// The text of a refusal before the upgrade must not be HTML-escaped.
func TestRefuse_TextsAreNotEscapedForHTML(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	request, err := http.NewRequest(http.MethodGet, "http"+strings.TrimPrefix(m.url, "ws"), nil)
	require.NoError(t, err)
	request.Header.Set("Origin", "https://<yes&no>")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, response.StatusCode)
	require.Contains(t, string(body), "<yes&no>")
}

func TestBadFrames_AreAnsweredAndTheConnectionStaysUsable(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	socket := m.raw(t, "alice")
	ready(t, socket)
	for _, c := range []struct{ text, replyTo, code, wantText string }{
		{`{`, "", refusal.Malformed, "not a JSON"},
		{`{"type":"ping","TYPE":"ping"}`, "", refusal.InvalidField, `no field "TYPE"`},
		{`{"id":"x","type":"subscribe","data":{},"data":{"rooms":["presence:bob"]}}`, "x", refusal.InvalidField, "data is there twice"},
		{`{"id":"x","id":"y","type":"ping"}`, "x", refusal.InvalidField, "id is there twice"},
		{"{\"id\":\"x\",\"type\":\"ping\xff\"}", "", refusal.Malformed, "UTF-8"},
		{`{"id":"` + strings.Repeat("é", 65) + `","type":"ping"}`, "", refusal.InvalidField, "id has more than 64 characters"},
		{`{"id":"x","type":"` + strings.Repeat("z", 60_000) + `"}`, "x", refusal.UnknownType, "zzz…"},
		{`{"id":"x","type":"subscribe","data":{"rooms":["presence:bob"],"Rooms":[]}}`, "x", refusal.InvalidField, "Rooms is unknown"},
		{`{"id":"x","type":"chat.send_message","data":{"conversation_id":"g","body":" \u200b\u2060\n"}}`, "x",
			refusal.InvalidField, "body is empty"},
		{`[]`, "", refusal.Malformed, "a JSON object"},
		{`"hello"`, "", refusal.Malformed, "a JSON object"},
		{`{"id":"1"} {"id":"2"}`, "", refusal.Malformed, "more than one"},
		{`{"id":"x"}`, "x", refusal.Malformed, "no type"},
		{`{"id":7,"type":"ping"}`, "", refusal.InvalidField, "id has to be a text"},
		{`{"id":"x","type":["ping"]}`, "x", refusal.InvalidField, "type has to be a text"},
		{`{"id":"x","type":"ping","colour":"red"}`, "x", refusal.InvalidField, `no field "colour"`},
		{`{"id":"x","type":"chat.send_mesage","data":{}}`, "x", refusal.UnknownType, `"chat.send_message"`},
		{`{"id":"x","type":"zzzzzzzz","data":{}}`, "x", refusal.UnknownType, "zzzzzzzz"},
		{`{"id":"x","type":"chat.send_message"}`, "x", refusal.InvalidField, "conversation_id"},
		{`{"id":"x","type":"chat.send_message","data":{"conversation_id":"g"}}`, "x", refusal.InvalidField, "body"},
		{`{"id":"x","type":"chat.send_message","data":[1]}`, "x", refusal.Malformed, ""},
		{`{"id":"x","type":"chat.send_message","data":{"conversation_id":"g","body":7}}`, "x", refusal.InvalidField, "body"},
		{`{"id":"x","type":"chat.send_message","data":{"conversation_id":"g","body":"b","bodi":"b"}}`, "x",
			refusal.InvalidField, "bodi"},
		{`{"id":"x","type":"chat.send_message","data":{"conversation_id":"g","body":"a\u0000b"}}`, "x",
			refusal.InvalidField, "body"},
		{`{"id":"x","type":"chat.send_message","data":{"conversation_id":"a;b","body":"b"}}`, "x", refusal.InvalidField,
			"conversation_id"},
		{`{"id":"x","type":"chat.send_message","command_id":"no id","data":{"conversation_id":"g","body":"b"}}`, "x",
			refusal.InvalidField, "command_id"},
		{`{"id":"x","type":"chat.history","data":{"conversation_id":""}}`, "x", refusal.InvalidField, "conversation_id"},
		{`{"id":"x","type":"subscribe","data":{"rooms":"presence:bob"}}`, "x", refusal.InvalidField, "rooms"},
		{`{"id":"x","type":"subscribe"}`, "x", refusal.InvalidField, "rooms"},
		{`{"id":"x","type":"subscribe","data":{"rooms":["conversation:g"]}}`, "x", refusal.NotFound, "conversation:g"},
		{`{"id":"x","type":"subscribe","data":{"rooms":["presence:bob"]}}`, "x", refusal.NotAMember, "presence:bob"},
		{`{"id":"x","type":"subscribe","data":{"rooms":["post:` + strings.Repeat("z", 60_000) + `"]}}`, "x", refusal.NotFound, "zzz… to subscribe to"},
		{`{"id":"x","type":"subscribe","data":{"rooms":["post:a\u0000b"]}}`, "x", refusal.InvalidField, "U+0000"},
		{`{"id":"x","type":"subscribe","data":{"rooms":["presence:a:b"]}}`, "x", refusal.NotFound, "to subscribe to"},
		{`{"id":"x","type":"chat.history","data":{"conversation_id":"g","limit":1e400}}`, "x", refusal.InvalidField, "limit"},
		{`{"id":"x","type":"chat.history","data":{"conversation_id":"g","before":9223372036854775808}}`, "x", refusal.InvalidField, "before"},
		{`{"id":"x","type":"chat.history","data":{"conversation_id":"g","after":"5"}}`, "x", refusal.InvalidField, "after"},
		{`{"id":"x","type":"chat.history","data":{"conversation_id":"` + strings.Repeat("z", 256) + `"}}`, "x", refusal.InvalidField, "conversation_id"},
		{`{"id":"x","type":"chat.history","data":{"conversation_id":"\ud800"}}`, "x", refusal.InvalidField, "conversation_id holds half"},
		{`{"id":"x","type":"chat.conversations","data":` + strings.Repeat(`{"a":`, 100) + `1` + strings.Repeat("}", 100) + `}`, "", refusal.Malformed, "nested deeper"},
		{"\ufeff{\"id\":\"x\",\"type\":\"ping\"}", "", refusal.Malformed, "out of place at byte 0"},
		{`{"id":"x","type":"connect","data":{"token":"bob"}}`, "x", refusal.Malformed, "first"},
		{`{"id":"x","type":"chat.send_message","expires_in_ms":-1,"data":{}}`, "x", refusal.InvalidField, "expires_in_ms"},
	} {
		write(t, socket, c.text)
		f := read(t, socket)
		require.NotNil(t, f.refused(), c.text)
		require.Equal(t, c.code, f.refused().Code, c.text)
		require.Equal(t, c.replyTo, f.ReplyTo, c.text)
		require.Equal(t, c.replyTo == "", f.Type == "error", c.text)
		require.Contains(t, f.refused().Message, c.wantText, c.text)
	}
	require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, []byte{1, 2, 3}))
	require.Equal(t, refusal.Malformed, read(t, socket).Error.Code)
	write(t, socket, `{"id":"p","type":"ping"}`)
	require.True(t, read(t, socket).OK)
	write(t, socket, send)
	require.True(t, read(t, socket).OK)
}

func TestFrame_AboveTheBoundIsRefusedAndTheConnectionClosed(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	socket := m.raw(t, "alice")
	ready(t, socket)
	write(t, socket, strings.Repeat("x", 1<<20))
	f := read(t, socket)
	require.Equal(t, refusal.Malformed, f.Error.Code)
	require.Contains(t, f.Error.Message, "262144 bytes")
	require.Equal(t, websocket.CloseMessageTooBig, closed(t, socket))
}

func TestHandshake_ATokenThatDoesNotHold(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	_, err := client.Dial(t.Context(), client.Options{URL: m.url, Token: "bad"})
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, refusal.Unauthorized, refused.Code)
	require.ErrorContains(t, err, "401")

	socket := m.raw(t, "")
	write(t, socket, `{"id":"0","type":"connect","data":{"token":"bad"}}`)
	f := read(t, socket)
	require.Equal(t, "0", f.ReplyTo)
	require.Equal(t, refusal.Unauthorized, f.Error.Code)
	require.Equal(t, hub.Unauthorized.Code, closed(t, socket))
}

func TestHandshake_ATokenThatCannotBeCheckedNow(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	_, response, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer unknown"}})
	require.Error(t, err)
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.NotEmpty(t, response.Header.Get("Retry-After"))

	socket := m.raw(t, "")
	write(t, socket, `{"id":"0","type":"connect","data":{"token":"unknown"}}`)
	require.Equal(t, refusal.Unavailable, read(t, socket).Error.Code)
	code := closed(t, socket)
	require.Equal(t, hub.Unavailable.Code, code)
	require.Less(t, code, 4500, "the client connects again")
}

// Cookies must not authenticate, because browsers send them with requests of any page. URLs must not authenticate
// either, because they are written to logs.
func TestHandshake_NeitherACookieNorTheURLAuthenticates(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for _, test := range []struct {
		url    string
		header http.Header
	}{
		{m.url, http.Header{"Cookie": {"token=alice; session=alice; edumatrix=alice; Authorization=Bearer alice"}}},
		{m.url + "?token=alice&access_token=alice&authorization=Bearer%20alice&jwt=alice", nil},
	} {
		socket, _, err := websocket.DefaultDialer.Dial(test.url, test.header)
		require.NoError(t, err)
		t.Cleanup(func() { _ = socket.Close() })
		write(t, socket, connectFrame)
		f := read(t, socket)
		require.Equal(t, refusal.Unauthorized, f.Error.Code, test.url)
		require.Equal(t, hub.Unauthorized.Code, closed(t, socket))
	}
}

func TestHandshake_NothingIsTakenBeforeTheToken(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for first, code := range map[string]int{
		send: hub.ProtocolError.Code, `{`: hub.ProtocolError.Code, "": hub.ProtocolError.Code,
		`{"id":"0","type":"connect"}`:                          hub.Unauthorized.Code,
		`{"id":"0","type":"connect","data":{"token":""}}`:      hub.Unauthorized.Code,
		`{"id":"0","type":"ping"}` + "\n" + connectFrame:       hub.ProtocolError.Code,
		`{"id":"0","type":"authenticate","data":{"token":""}}`: hub.ProtocolError.Code,
	} {
		socket := m.raw(t, "")
		write(t, socket, first)
		f := read(t, socket)
		require.NotNil(t, f.Error, first)
		closing := read(t, socket)
		require.Equal(t, "closing", closing.Type, first)
		require.Equal(t, code, closing.Code, first)
		require.NotEmpty(t, closing.Error.Message, first)
		require.Equal(t, code, closed(t, socket), first)
	}
}

func TestHandshake_EndsWhenNoConnectFrameComes(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{Handshake: 50 * time.Millisecond}, hub.Options{})
	code := closed(t, m.raw(t, ""))
	require.Equal(t, hub.ConnectTimeout.Code, code)
	require.Less(t, code, 4500, "the client may reconnect")
}

func TestToken_EndsItsConnectionWhenItExpires(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	require.Equal(t, hub.TokenExpired.Code, closed(t, m.raw(t, "brief-alice")))
}

func TestOrigin_OthersAreRefusedAndNamedInTheLog(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	host := strings.TrimPrefix(strings.TrimSuffix(m.url, "/ws"), "ws://")
	for origin, allowed := range map[string]bool{
		"http://" + host: true, "https://school.example": true, "": true,
		"https://evil.example": false, "http://localhost:1": false, "null": false, "https://school.example.evil": false,
	} {
		header := http.Header{"Authorization": {"Bearer alice"}}
		if origin != "" {
			header.Set("Origin", origin)
		}
		socket, response, err := websocket.DefaultDialer.Dial(m.url, header)
		if allowed {
			require.NoError(t, err, origin)
			_ = socket.Close()
			continue
		}
		require.Error(t, err, origin)
		require.Equal(t, http.StatusForbidden, response.StatusCode)
	}
	require.Contains(t, m.log.String(), "https://evil.example")
}

func TestConnections_OfOneUserAreBounded(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{PerUser: 1})
	m.dial(t, client.Options{})
	require.Equal(t, hub.TooManyConnections.Code, closed(t, m.raw(t, "alice")))
	m.dial(t, client.Options{Token: "bob"})
}

func TestPing_AClientThatDoesNotAnswerIsGone(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{Ping: 2 * time.Second}, hub.Options{})
	there := m.dial(t, client.Options{Token: "bob"})
	for range 2 { // while the other client answers at least two pings
		silent := m.raw(t, "alice")
		silent.SetPingHandler(func(string) error { return nil })
		require.Equal(t, hub.NoPong.Code, closed(t, silent))
	}
	_, err := there.Request(t.Context(), map[string]any{"type": "ping"})
	require.NoError(t, err)
}

func TestShutdown_ClosesWithTheCodeToConnectElsewhere(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	socket := m.raw(t, "alice")
	ready(t, socket)
	m.sockets.Stop()
	m.hub.Close(hub.Shutdown)
	require.Equal(t, hub.Shutdown.Code, closed(t, socket))
	_, response, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer alice"}})
	require.Error(t, err)
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
}

func TestSlowClient_CostsOnlyItself(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{Limits: hub.Limits{Bytes: 256 << 10}})
	m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
	slow := m.raw(t, "bob")
	require.NoError(t, slow.NetConn().(*net.TCPConn).SetReadBuffer(4096))
	ready(t, slow)
	var mu sync.Mutex
	var got []int64
	m.dial(t, client.Options{OnEvent: func(e client.Event) { mu.Lock(); got = append(got, e.Version); mu.Unlock() }})

	body := strings.Repeat("x", 8000)
	const messages = 1500
	for n := range messages {
		e := m.chat.Append("alice", "chat.message_sent",
			fmt.Sprintf(`{"conversation_id":"g","message_id":"m%d","body":%q}`, n, body))
		declared, _ := m.catalog.Event(e.Type)
		m.hub.Shard("chat").Deliver(hub.NewEvent(e, declared))
		if n%10 == 0 { // wait until the client has read the events, so that it does not become slow
			require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= n }, 5*time.Second,
				100*time.Microsecond)
		}
	}
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == messages }, 5*time.Second,
		time.Millisecond)
	for n, v := range got {
		require.EqualValues(t, n+2, v)
	}
	require.Eventually(t, func() bool { return strings.Contains(m.log.String(), hub.Slow.Name) }, 5*time.Second,
		time.Millisecond)
	for { // read the frames that were sent, up to the end of the connection
		if _, _, err := slow.ReadMessage(); err != nil {
			require.False(t, errors.Is(err, os.ErrDeadlineExceeded), err)
			break
		}
	}
}

func TestQuery_ReportsAnUnavailableOwner(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	c := m.dial(t, client.Options{})
	err := c.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, nil)
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.NotEqual(t, refusal.Malformed, refused.Code)
}

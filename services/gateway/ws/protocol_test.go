package ws_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// The tests in this file check the statements of docs/protocol.md about one connection.

func TestConnect_TheReplyContainsLimitsAndIntervals(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	c := m.dial(t, client.Options{Device: "phone"}).Connected()
	require.Equal(t, "alice", c.UserID)
	require.NotEmpty(t, c.SessionID)
	require.NotEmpty(t, c.ResumeToken)
	require.False(t, c.Resumed)
	require.Equal(t, []string{}, c.NotRecovered)
	require.Equal(t, 1, c.Protocol)
	require.Equal(t, []string{}, c.Features)
	require.EqualValues(t, 25_000, c.HeartbeatMS)
	require.Equal(t, []string{"conversation"}, c.DenseStreams)
	require.EqualValues(t, frame.MaxMessage, c.Limits.FrameBytes)
	require.EqualValues(t, 512, c.Limits.PendingCommands)
	require.WithinDuration(t, time.Now(), c.ServerTime, time.Hour)
	again := m.dial(t, client.Options{SessionID: c.SessionID}).Connected()
	require.Equal(t, c.SessionID, again.SessionID, "several connections may share a session")
	require.NotEqual(t, "no session!", m.dial(t, client.Options{SessionID: "no session!"}).Connected().SessionID)
}

func TestConnect_TheTokensOfFrameAndHeaderNameTheSameUser(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for token, code := range map[string]int{"alice": 0, "bob": hub.Unauthorized.Code} {
		socket, _, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer alice"}})
		require.NoError(t, err)
		t.Cleanup(func() { _ = socket.Close() })
		write(t, socket, fmt.Sprintf(`{"id":"connect","type":"connect","data":{"token":%q}}`, token))
		if code == 0 {
			ready(t, socket)
			continue
		}
		require.Equal(t, refusal.Unauthorized, read(t, socket).Error.Code)
		require.Equal(t, code, closed(t, socket))
	}
}

// A client sends frames after connect without waiting for the reply, and an owner is unavailable, so the user's rooms
// are not known. The later frames must be answered before the reply to connect. Meanwhile, heartbeats must be sent.
func TestConnect_LaterFramesAreAnsweredWhileAnOwnerIsUnavailable(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{CoverEvery: 20 * time.Millisecond})
	m.chat.SetAway(true)
	socket := m.raw(t, "")
	write(t, socket, `{"id":"connect","type":"connect","data":{"token":"alice"}}`+"\n"+`{"id":"p","type":"ping"}`+"\n"+send)
	require.Equal(t, "p", read(t, socket).ReplyTo)
	outcome := read(t, socket)
	require.Equal(t, "c1", outcome.ReplyTo)
	require.Equal(t, "committed", outcome.Outcome.Kind)
	for {
		_, text, err := socket.ReadMessage()
		require.NoError(t, err)
		if string(text) == `{"type":"heartbeat"}` {
			break
		}
	}
	m.chat.SetAway(false)
	ready(t, socket)
}

func TestConnect_NothingBehindARefusedOneIsDone(t *testing.T) {
	t.Parallel()
	done := make(chan string, 10)
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) {
		s.mesh.silent = func(c envelope.Command) bool { done <- c.Actor; return true }
	})
	socket := m.raw(t, "")
	write(t, socket, `{"id":"connect","type":"connect","data":{"token":"bad"}}`+"\n"+send)
	_ = socket.WriteMessage(websocket.TextMessage, []byte(send))
	require.Equal(t, "connect", read(t, socket).ReplyTo)
	require.Equal(t, "closing", read(t, socket).Type)
	require.Equal(t, hub.Unauthorized.Code, closed(t, socket))
	require.Empty(t, done)
}

func TestConnect_WithoutAReplyInTimeTheClientReconnects(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) { s.connectWithin = 100 * time.Millisecond })
	m.chat.SetAway(true)
	socket := m.raw(t, "alice")
	require.Equal(t, hub.ConnectTimeout.Code, read(t, socket).Code)
	require.Equal(t, hub.ConnectTimeout.Code, closed(t, socket))
	require.True(t, hub.ConnectTimeout.Reconnect)
}

// Even if there are no events, the gateway must continue to send heartbeats.
func TestHeartbeat_IsASignOfLife(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{CoverEvery: 10 * time.Millisecond})
	socket := m.raw(t, "alice")
	ready(t, socket)
	for range 3 {
		_, text, err := socket.ReadMessage()
		require.NoError(t, err)
		require.Contains(t, string(text), `{"type":"heartbeat","resume_token":"`)
	}
}

// A web page cannot see the response to a refused handshake. If the page's token is not accepted or cannot be checked,
// or if the gateway is stopping, the page must therefore get the refusal after the upgrade, as a close code.
func TestBrowser_SeesTheCloseCodeAfterTheUpgrade(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	page := func(token string) *websocket.Conn {
		socket, _, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer " + token},
			"Origin": {"https://school.example"}, "Sec-Websocket-Protocol": {"edumatrix.v1.json"}})
		require.NoError(t, err)
		t.Cleanup(func() { _ = socket.Close() })
		return socket
	}
	for token, code := range map[string]int{"bad": hub.Unauthorized.Code, "unknown": hub.Unavailable.Code} {
		socket := page(token)
		require.Equal(t, "error", read(t, socket).Type)
		closing := read(t, socket)
		require.Equal(t, "closing", closing.Type)
		require.Equal(t, code, closing.Code)
		require.Equal(t, code < 4500, closing.Error.RetryAfterMS > 0)
		require.Equal(t, code, closed(t, socket))
	}
	m.sockets.Stop()
	require.Equal(t, hub.Shutdown.Code, closed(t, page("alice")))
}

// A gateway is full. A web page must get the close code, unless the gateway is already refusing 32 other web pages in
// this way. A program, or a page of another origin, must get the HTTP status.
func TestBrowser_SeesTheCloseCodeOfAFullGateway(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) {
		s.handler = func(sockets *ws.Server) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !sockets.RefuseFull(w, r) {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
		}
	})
	dial := func(origin string) (*websocket.Conn, int) {
		header := http.Header{"Sec-Websocket-Protocol": {"edumatrix.v1.json"}}
		if origin != "" {
			header.Set("Origin", origin)
		}
		socket, response, err := websocket.DefaultDialer.Dial(m.url, header)
		if err != nil {
			require.ErrorIs(t, err, websocket.ErrBadHandshake)
			return nil, response.StatusCode
		}
		t.Cleanup(func() { _ = socket.Close() })
		return socket, response.StatusCode
	}
	for _, origin := range []string{"", "https://other.example"} {
		_, status := dial(origin)
		require.Equal(t, http.StatusServiceUnavailable, status, origin)
	}
	var open []*websocket.Conn
	for {
		socket, status := dial("https://school.example")
		if socket == nil {
			require.Equal(t, http.StatusServiceUnavailable, status)
			break
		}
		open = append(open, socket)
		require.LessOrEqual(t, len(open), 32, "each refused page occupies an open file")
	}
	for _, socket := range open {
		closing := read(t, socket)
		require.Equal(t, "closing", closing.Type)
		require.Equal(t, hub.GatewayFull.Code, closing.Code)
		require.Equal(t, "gateway_full", closing.Error.Code)
		require.EqualValues(t, 5000, closing.Error.RetryAfterMS)
		require.Equal(t, hub.GatewayFull.Code, closed(t, socket))
		_ = socket.Close()
	}
	require.True(t, hub.GatewayFull.Reconnect)
	require.Eventually(t, func() bool { // after those connections were closed, other pages get the close code
		socket, _ := dial("https://school.example")
		return socket != nil
	}, 10*time.Second, 10*time.Millisecond)
}

// The first frame of a connection is larger than the limit, which is the same for all frames. The gateway does not read
// such a frame to its end and does not decode it, so the id for a reply is unknown. The client must get the frame
// "closing" and the close code, but no reply.
func TestConnect_AFirstFrameThatIsTooLargeIsClosedWith1009(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	socket := m.raw(t, "")
	write(t, socket, `{"id":"connect","type":"connect","data":{"token":"alice","device":"`+strings.Repeat("x", frame.MaxMessage)+`"}}`)
	closing := read(t, socket)
	require.Equal(t, "closing", closing.Type)
	require.Equal(t, hub.TooLarge.Code, closing.Code)
	require.Equal(t, "too_large", closing.Error.Code)
	require.Equal(t, hub.TooLarge.Code, closed(t, socket))

	// A first frame of exactly the maximum size must be accepted.
	socket = m.raw(t, "")
	connect := `{"id":"connect","type":"connect","data":{"token":"alice","device":""}}`
	write(t, socket, strings.Replace(connect, `""`, `"`+strings.Repeat("x", frame.MaxMessage-len(connect))+`"`, 1))
	require.Equal(t, "alice", ready(t, socket).UserID)
}

func TestSubprotocol_IsTheFirstThatIsKnown(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	for offered, chosen := range map[string]string{
		"": "", "edumatrix.v1.json": "edumatrix.v1.json", "other, edumatrix.v1.proto, edumatrix.v1.json": "edumatrix.v1.proto",
	} {
		header := http.Header{"Authorization": {"Bearer alice"}}
		if offered != "" {
			header.Set("Sec-WebSocket-Protocol", offered)
		}
		socket, _, err := websocket.DefaultDialer.Dial(m.url, header)
		require.NoError(t, err)
		require.Equal(t, chosen, socket.Subprotocol())
		_ = socket.Close()
	}
	_, response, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer alice"},
		"Sec-Websocket-Protocol": {"graphql-ws"}})
	require.Error(t, err)
	require.Equal(t, http.StatusBadRequest, response.StatusCode)
}

// binary opens a socket with the Protobuf subprotocol. The returned function send sends client frames in one message,
// and the function read returns the next server frame.
func (m *mesh) binary(t *testing.T) (send func(...*gatewayv1.ClientFrame), read func() *gatewayv1.ServerFrame, socket *websocket.Conn) {
	t.Helper()
	socket, _, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer alice"},
		"Sec-Websocket-Protocol": {"edumatrix.v1.proto"}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(10*time.Second)))
	var waiting []*gatewayv1.ServerFrame
	send = func(frames ...*gatewayv1.ClientFrame) {
		var message []byte
		for _, f := range frames {
			encoded, err := proto.Marshal(f)
			require.NoError(t, err)
			message = protowire.AppendBytes(message, encoded)
		}
		require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, message))
	}
	read = func() *gatewayv1.ServerFrame {
		for len(waiting) == 0 {
			kind, message, err := socket.ReadMessage()
			require.NoError(t, err)
			require.Equal(t, websocket.BinaryMessage, kind)
			for len(message) > 0 {
				one, n := protowire.ConsumeBytes(message)
				require.Positive(t, n)
				message = message[n:]
				var f gatewayv1.ServerFrame
				require.NoError(t, proto.Unmarshal(one, &f))
				waiting = append(waiting, &f)
			}
		}
		first := waiting[0]
		waiting = waiting[1:]
		return first
	}
	return send, read, socket
}

func TestProtobuf_TheSameFramesInBinary(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	m.chat.OnQuery(func(string, fake.Question) (string, error) { return `{"version":"7"}`, nil })
	send, read, socket := m.binary(t)
	data, err := proto.Marshal(&chatv1.SendMessage{ConversationId: "g", Body: "hi"})
	require.NoError(t, err)
	ask, err := proto.Marshal(&chatv1.HistoryRequest{ConversationId: "g"})
	require.NoError(t, err)
	send(&gatewayv1.ClientFrame{Id: "connect", Type: "connect"})
	var connected gatewayv1.Connected
	require.NoError(t, proto.Unmarshal(read().GetReply().Data, &connected))
	require.Equal(t, "alice", connected.UserId)
	send(&gatewayv1.ClientFrame{Id: "p", Type: "ping"}, &gatewayv1.ClientFrame{Id: "c", Type: "chat.send_message", CommandId: "c1", Data: data})
	require.Equal(t, "p", read().GetReply().ReplyTo)
	outcome := read().GetReply().Outcome
	require.Equal(t, gatewayv1.OutcomeKind_OUTCOME_KIND_COMMITTED, outcome.Kind)
	require.Equal(t, "c1", outcome.CommandId)
	send(&gatewayv1.ClientFrame{Id: "q", Type: "chat.history", Data: ask})
	var history chatv1.HistoryResponse
	require.NoError(t, proto.Unmarshal(read().GetReply().Data, &history))
	require.EqualValues(t, 7, history.Version)

	// A bad frame must be refused and have no other effect.
	send(&gatewayv1.ClientFrame{Id: "x", Type: "chat.send_message", Data: []byte("\xff")})
	require.Equal(t, refusal.InvalidField, read().GetReply().Outcome.Error.Code)
	require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, []byte("\x05ab")))
	require.Equal(t, refusal.Malformed, read().GetError().Error.Code)
	require.NoError(t, socket.WriteMessage(websocket.TextMessage, []byte(`{"id":"1","type":"ping"}`)))
	require.Contains(t, read().GetError().Error.Message, "edumatrix.v1.proto")
	send(&gatewayv1.ClientFrame{Id: "p", Type: "ping"})
	require.True(t, read().GetReply().Ok)
	m.hub.Close(hub.Shutdown)
	f := read()
	for f.GetHeartbeat() != nil {
		f = read()
	}
	require.EqualValues(t, hub.Shutdown.Code, f.GetClosing().Code)
}

// A client sends several control frames, and the first one has to wait for an owner. All control frames must take
// effect and be answered in order.
func TestControl_FramesAreAnsweredInOrder(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	feed := m.owners["feed"]
	feed.Allow("alice", "post:7", true)
	socket := m.raw(t, "alice")
	ready(t, socket)
	feed.SetAway(true) // so that the subscription waits
	for n, frame := range []string{
		`{"id":"0","type":"subscribe","data":{"rooms":["post:7"]}}`,
		`{"id":"1","type":"ping"}`,
		`{"id":"2","type":"unsubscribe","data":{"rooms":["post:7"]}}`,
		`{"id":"3","type":"authenticate","data":{"token":"alice"}}`,
		`{"id":"4","type":"subscribe","data":{"rooms":[]}}`,
		`{"id":"5","type":"ping"}`,
	} {
		write(t, socket, frame)
		if n == 0 {
			require.Eventually(t, func() bool { return feed.Refused() > 0 }, 5*time.Second, time.Millisecond)
		}
	}
	write(t, socket, send)
	require.Equal(t, "c1", read(t, socket).ReplyTo, "a command does not wait for control frames")
	feed.SetAway(false)
	for n := range 6 {
		f := read(t, socket)
		require.Equal(t, fmt.Sprint(n), f.ReplyTo)
		require.Equal(t, n != 4, f.OK, "%+v", f.Error)
	}
	e := feed.Append("carol", "feed.post_created", `{"post_id":"7","author_id":"carol","body":"x"}`)
	declared, _ := m.catalog.Event(e.Type)
	m.hub.Shard("feed").Deliver(hub.NewEvent(e, declared))
	write(t, socket, `{"id":"last","type":"ping"}`)
	require.Equal(t, "last", read(t, socket).ReplyTo, "no event of the room follows the reply to unsubscribe")
}

func TestToken_IsRenewedOnALiveConnection(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	expiring := make(chan time.Duration, 4)
	c := m.dial(t, client.Options{Token: "short-alice", OnTokenExpiring: func(left time.Duration) { expiring <- left }})
	require.LessOrEqual(t, <-expiring, time.Minute, "the token is valid for less than a minute")
	var refused *client.Error
	require.ErrorAs(t, c.Authenticate(t.Context(), "bob"), &refused, "a token of another user")
	require.Equal(t, refusal.Unauthorized, refused.Code)
	require.ErrorAs(t, c.Authenticate(t.Context(), "bad"), &refused)
	require.ErrorAs(t, c.Authenticate(t.Context(), "unknown"), &refused)
	require.Equal(t, refusal.Unavailable, refused.Code)
	require.NoError(t, c.Authenticate(t.Context(), "alice"))

	// A connection must end when its token expires, even after a refused renewal. A renewal that is accepted must
	// extend the connection.
	brief := m.dial(t, client.Options{Token: "brief-alice"})
	_ = brief.Authenticate(t.Context(), "bad")
	<-brief.Done()
	require.ErrorContains(t, brief.Err(), fmt.Sprint(hub.TokenExpired.Code))
	require.ErrorContains(t, brief.Err(), hub.TokenExpired.Text, "the closing frame")
	renewed := m.dial(t, client.Options{Token: "brief-alice"})
	require.NoError(t, renewed.Authenticate(t.Context(), "alice"))
	select {
	case <-renewed.Done():
		t.Fatal(renewed.Err())
	case <-time.After(300 * time.Millisecond): // three times as long as the first token is valid
	}
}

func TestCommand_ExpiresAfterTheClientsLimit(t *testing.T) {
	t.Parallel()
	expires := make(chan time.Time, 2)
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) {
		s.mesh.silent = func(c envelope.Command) bool { expires <- c.Expires; return false }
	})
	c := m.dial(t, client.Options{})
	before := time.Now()
	for _, ms := range []any{60_000, nil} {
		frame := map[string]any{"type": "chat.send_message", "data": map[string]string{"conversation_id": "g", "body": "hi"}}
		if ms != nil {
			frame["expires_in_ms"] = ms
		}
		_, err := c.Request(t.Context(), frame)
		require.NoError(t, err)
		at := <-expires
		if ms == nil {
			require.True(t, at.IsZero(), "the command never expires")
			continue
		}
		require.False(t, at.Before(before.Add(time.Minute).Truncate(time.Millisecond)))
		require.False(t, at.After(time.Now().Add(time.Minute)))
	}
}

// An error must contain the field, so that a form can show the error beside it. The error must also contain the id of
// the trace, for operators, if the trace is recorded.
func TestError_NamesTheFieldAndTheTrace(t *testing.T) {
	t.Parallel()
	tracer := trace.NewTracerProvider(trace.WithSampler(trace.AlwaysSample())).Tracer("test")
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) { s.tracer = tracer })
	c := m.dial(t, client.Options{})
	_, err := c.Command(t.Context(), "chat.start_group", map[string]any{"title": strings.Repeat("x", 10_000), "user_ids": []string{}})
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "title", refused.Field)
	require.Len(t, refused.TraceID, 32)
	m.chat.OnQuery(func(string, fake.Question) (string, error) { return "", refusal.New(refusal.Unavailable, "no") })
	err = c.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, nil)
	require.ErrorAs(t, err, &refused)
	require.EqualValues(t, 1000, refused.RetryAfterMS)
	require.Len(t, refused.TraceID, 32)

	socket := m.raw(t, "alice")
	ready(t, socket)
	write(t, socket, `{"id":"1","type":"subscribe","data":{"rooms":[7]}}`)
	var f struct{ Error map[string]any }
	_, text, err := socket.ReadMessage()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &f))
	require.Equal(t, "rooms[0]", f.Error["field"])
	require.NotContains(t, f.Error, "retry_after_ms", "waiting does not help")
}

// The close codes that the gateway defines begin at 4000. Each of them must have a text for the frame "closing".
// Clients infer from the number whether to reconnect: they must reconnect after codes below 4500, and must not after
// the other codes.
func TestClosing_EachCodeDefinesWhetherToReconnect(t *testing.T) {
	t.Parallel()
	values := gatewayv1.CloseCode(0).Descriptor().Values()
	for i := range values.Len() {
		code := int(values.Get(i).Number())
		if code < 4000 {
			continue
		}
		declared := proto.GetExtension(values.Get(i).Options(), gatewayv1.E_Close).(*gatewayv1.Close)
		require.Equal(t, code < 4500, declared.Reconnect, values.Get(i).Name())
		require.NotEmpty(t, declared.Message)
		require.LessOrEqual(t, len(declared.Message), 123, "the limit of a close frame")
	}
}

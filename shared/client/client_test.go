package client_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/client"
)

// mesh starts a server and returns its URL. The server replies to the connect frame of a client, and after that calls
// the function in the parameter then.
func mesh(t *testing.T, then func(socket *websocket.Conn)) string {
	t.Helper()
	return meshOf(t, make(chan string, 100), then)
}

// meshOf is like mesh. In addition, it sends the data of each connect frame to a channel.
func meshOf(t *testing.T, connects chan<- string, then func(socket *websocket.Conn)) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		socket, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = socket.Close() }()
		var connect struct{ Data json.RawMessage }
		if err := socket.ReadJSON(&connect); err != nil {
			return
		}
		connects <- string(connect.Data)
		_ = socket.WriteMessage(websocket.TextMessage,
			[]byte(`{"type":"reply","reply_to":"c1","ok":true,"data":{"resume_token":"t1","session_id":"s1"}}`))
		then(socket)
	}))
	t.Cleanup(server.Close)
	return "ws" + strings.TrimPrefix(server.URL, "http")
}

func dial(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestClient_NoticesThatTheMeshIsSilent(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	defer close(end)
	url := mesh(t, func(*websocket.Conn) { <-end }) // nothing reads the socket, so pings are not answered either
	c := dial(t, client.Options{URL: url, Silence: 200 * time.Millisecond})
	select {
	case <-c.Done():
		require.ErrorIs(t, c.Err(), client.ErrClosed)
	case <-time.After(10 * time.Second):
		t.Fatal("the client did not notice that the mesh is silent")
	}
}

func TestClient_PingsAMeshThatHasNothingToSend(t *testing.T) {
	t.Parallel()
	pings := make(chan struct{}, 100)
	url := mesh(t, func(socket *websocket.Conn) {
		answer := socket.PingHandler()
		socket.SetPingHandler(func(payload string) error { pings <- struct{}{}; return answer(payload) })
		for {
			if _, _, err := socket.ReadMessage(); err != nil {
				return
			}
		}
	})
	c := dial(t, client.Options{URL: url, Silence: 500 * time.Millisecond})
	for range 6 { // six pings take longer than Silence
		select {
		case <-pings:
		case <-c.Done():
			t.Fatal(c.Err())
		}
	}
}

func TestClient_RefusesAFrameThatIsTooLong(t *testing.T) {
	t.Parallel()
	url := mesh(t, func(socket *websocket.Conn) {
		for {
			_, text, err := socket.ReadMessage()
			if err != nil {
				return
			}
			if strings.Contains(string(text), "short") {
				_ = socket.WriteMessage(websocket.TextMessage, []byte(`{"type":"reply","reply_to":"c3","ok":true,"outcome":{"kind":"committed","version":7}}`))
			}
		}
	})
	c := dial(t, client.Options{URL: url})
	_, err := c.Command(t.Context(), "chat.send_message", strings.Repeat("x", client.MaxFrame))
	require.ErrorContains(t, err, "at most 262144")
	o, err := c.Command(t.Context(), "chat.send_message", "short")
	require.NoError(t, err)
	require.Equal(t, "committed", o.Kind)
	require.EqualValues(t, 7, o.Version)
}

func TestClient_AFrameThatCannotBeReadEndsTheConnection(t *testing.T) {
	t.Parallel()
	url := mesh(t, func(socket *websocket.Conn) {
		_ = socket.WriteMessage(websocket.TextMessage, []byte(`{"type":"event","event":`))
		_, _, _ = socket.ReadMessage()
	})
	c := dial(t, client.Options{URL: url})
	<-c.Done()
	require.ErrorContains(t, c.Err(), "cannot be read")
}

// A user ends a session, and the session's client connects again. The client must begin a new session and request no
// missed events.
func TestClient_BeginsANewSessionWhenItsSessionWasEnded(t *testing.T) {
	t.Parallel()
	const closing = `{"type":"closing","code":4501,"error":{"code":"session_ended","message":"it was ended"}}`
	for name, end := range map[string]func(*websocket.Conn){
		"by the closing frame": func(socket *websocket.Conn) { _ = socket.WriteMessage(websocket.TextMessage, []byte(closing)) },
		"by the close code": func(socket *websocket.Conn) {
			_ = socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4501, ""), time.Now().Add(10*time.Second))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			connects := make(chan string, 4)
			url := meshOf(t, connects, func(socket *websocket.Conn) {
				_ = socket.WriteMessage(websocket.TextMessage, []byte(`{"type":"event","event":"e","stream":"s","version":7}`))
				end(socket)
			})
			var tokens []string
			var events []int64
			c := dial(t, client.Options{URL: url, OnResumeToken: func(token string) { tokens = append(tokens, token) },
				OnEvent: func(e client.Event) { events = append(events, e.Version) }})
			require.JSONEq(t, `{}`, <-connects)
			<-c.Done()
			require.True(t, c.SessionEnded())
			require.Empty(t, c.ResumeToken())
			require.Equal(t, []string{"t1", ""}, tokens)
			require.False(t, client.Reconnects(&websocket.CloseError{Code: 4501}))
			next, err := c.Redial(t.Context(), "")
			require.NoError(t, err)
			t.Cleanup(next.Close)
			require.JSONEq(t, `{}`, <-connects, "neither a session nor a resume token")
			<-next.Done()
			require.Equal(t, []int64{7, 7}, events, "events of the new session are not dropped as repeats of the old one")
		})
	}
}

// A client loses its connection and connects again. The client must continue its session and send its resume token.
func TestClient_ContinuesItsSessionAfterALostConnection(t *testing.T) {
	t.Parallel()
	connects := make(chan string, 4)
	c := dial(t, client.Options{URL: meshOf(t, connects, func(socket *websocket.Conn) {
		_ = socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4000, ""), time.Now().Add(10*time.Second))
	})})
	<-connects
	<-c.Done()
	require.False(t, c.SessionEnded())
	require.True(t, client.Reconnects(c.Err()))
	next, err := c.Redial(t.Context(), "")
	require.NoError(t, err)
	t.Cleanup(next.Close)
	require.JSONEq(t, `{"resume_token":"t1","session_id":"s1"}`, <-connects)
}

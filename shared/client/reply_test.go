package client

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// A server sends a reply and closes the connection at once. Request must return the reply and not the error of the
// ended connection, even if the connection has ended before Request looks for the reply.
func TestRequest_ReturnsAReplyBeforeTheConnectionEnds(t *testing.T) {
	t.Parallel()
	var upgrader websocket.Upgrader
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		if _, _, err := conn.ReadMessage(); err == nil {
			_ = conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"reply","reply_to":"c1","error":{"code":"unauthorized","message":"no"}}`))
		}
	}))
	t.Cleanup(server.Close)
	for range 200 {
		conn, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(server.URL, "http"), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := &Client{conn: conn, codec: jsonCodec{}, waiting: map[string]call{}, done: make(chan struct{}), seen: map[string]int64{}}
		go c.read()
		var refused *Error
		if _, err := c.Request(t.Context(), map[string]any{"type": "authenticate"}); !errors.As(err, &refused) {
			t.Fatalf("the reply was lost: %v", err)
		}
		_ = conn.Close()
	}
}

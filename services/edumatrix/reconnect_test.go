package edumatrix

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// gatewayThatCloses starts a stand-in for a gateway. The stand-in answers the requests of a terminal client and, after
// the query chat.history, closes the connection: the first connection with the first of the codes, and so on.
func gatewayThatCloses(t *testing.T, codes ...int) (url string) {
	t.Helper()
	next := make(chan int, len(codes))
	for _, code := range codes {
		next <- code
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		socket, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = socket.Close() }()
		for {
			var f struct{ ID, Type string }
			_, text, err := socket.ReadMessage()
			if err != nil || json.Unmarshal(text, &f) != nil {
				return
			}
			reply := map[string]any{"type": "reply", "reply_to": f.ID, "ok": true, "data": map[string]any{}}
			if f.Type == "chat.start_direct" {
				reply["outcome"] = map[string]any{"kind": "committed", "stream": "conversation:1", "version": 1}
			}
			if err := socket.WriteJSON(reply); err != nil {
				return
			}
			if f.Type == "chat.history" {
				_ = socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(<-next, "a reason"),
					time.Now().Add(10*time.Second))
			}
		}
	}))
	t.Cleanup(server.Close)
	return "ws" + strings.TrimPrefix(server.URL, "http")
}

// TestTalk_ReconnectsAfterCloseCodesThatAllowIt checks that a terminal reconnects after three of the close codes for
// which docs/protocol.md requires a reconnect, and ends after 4501 (session ended).
func TestTalk_ReconnectsAfterCloseCodesThatAllowIt(t *testing.T) {
	t.Parallel()
	var errs strings.Builder
	c := &conversationOnTerminal{Terminal: Terminal{In: blocked{t.Context().Done()}, Out: io.Discard, Err: &errs},
		url: gatewayThatCloses(t, 1012, 4000, 4499, 4501), to: "bob"}
	require.EqualError(t, c.run(t.Context()), "the gateway has closed the connection: a reason")
	require.Equal(t, 3, strings.Count(errs.String(), "connecting again"))
}

// blocked is an input whose reads block until the test ends.
type blocked struct{ end <-chan struct{} }

func (b blocked) Read([]byte) (int, error) {
	<-b.end
	return 0, errors.New("the test is over")
}

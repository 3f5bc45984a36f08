package ws_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/client"
)

// panickingTracer is a tracer that panics when a trace span of the given name begins.
type panickingTracer struct {
	noop.Tracer
	name string
}

func (p panickingTracer) Start(ctx context.Context, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	if name == p.name {
		panic("injected into " + name)
	}
	return p.Tracer.Start(ctx, name, o...)
}

// panickingConn panics when it is to write the text "panic-in-write", which a test puts into a frame.
type panickingConn struct{ net.Conn }

func (c panickingConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panic-in-write")) {
		panic("injected into a write")
	}
	return c.Conn.Write(b)
}

type panickingListener struct{ net.Listener }

func (l panickingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return panickingConn{c}, err
}

func TestPanic_CostsOneConnection(t *testing.T) {
	t.Parallel()
	for place, frame := range map[string]string{
		"reader": `{"id":"1","type":"chat.leave","data":{"conversation_id":"g"}}`,
		"query":  `{"id":"1","type":"chat.history","data":{"conversation_id":"g"}}`,
		"writer": `{"id":"panic-in-write","type":"ping"}`,
	} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			m := begin(t, ws.Options{}, hub.Options{PerUser: 1}, func(s *setup) {
				s.listener = func(l net.Listener) net.Listener { return panickingListener{l} }
				switch place {
				case "reader":
					s.tracer = panickingTracer{name: "receive chat.leave"}
				case "query":
					s.tracer = panickingTracer{name: "ask chat.history"}
				}
			})
			m.chat.OnQuery(func(string, fake.Question) (string, error) { return `{}`, nil })
			alice := m.dial(t, client.Options{})
			eve := m.raw(t, "eve")
			ready(t, eve)
			write(t, eve, frame)
			if place == "writer" { // no close frame follows, because a frame may have been written in part
				_, _, err := eve.ReadMessage()
				require.Error(t, err)
			} else {
				require.Equal(t, hub.Internal.Code, closed(t, eve))
			}
			require.Eventually(t, func() bool { return m.gone("eve") }, 5*time.Second, 10*time.Millisecond, "still reported")
			// The hub must have removed the connection: PerUser is 1, so eve can connect only then.
			m.dial(t, client.Options{Token: "eve"})
			_, err := alice.Command(t.Context(), "chat.send_message", map[string]string{"conversation_id": "g", "body": "hi"})
			require.NoError(t, err)
			require.Contains(t, m.log.String(), "recovered from a panic")
			require.Contains(t, m.log.String(), "place="+place)
			require.Contains(t, m.log.String(), "panic_test.go", "the stack")
		})
	}
}

func TestPanic_InAHandshakeCostsThatHandshake(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	_, response, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer panic"}})
	require.Error(t, err)
	require.Equal(t, http.StatusInternalServerError, response.StatusCode)
	eve := m.raw(t, "")
	write(t, eve, `{"id":"0","type":"connect","data":{"token":"panic"}}`)
	require.Equal(t, hub.Internal.Code, closed(t, eve))
	m.dial(t, client.Options{})
	require.Equal(t, 2, strings.Count(m.log.String(), "recovered from a panic"))
}

// gone reports whether the keeper has got a report that a connection of the user has ended.
func (m *mesh) gone(user string) bool {
	for _, r := range m.keeper.Reports() {
		for _, c := range r.Changes {
			if c.User == user && c.Gone {
				return true
			}
		}
	}
	return false
}

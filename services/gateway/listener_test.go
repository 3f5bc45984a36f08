package gateway

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// The gateway has its maximum number of connections. It must respond to further requests with 503, before the upgrade.
// After a connection was closed, the gateway must accept another one.
func TestListener_AboveItsMaximumResponds503BeforeTheUpgrade(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	bounded := &boundedListener{Listener: inner, max: 2}
	upgrader := websocket.Upgrader{}
	server := httptest.NewUnstartedServer(bounded.full(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		socket, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		go func() { _, _, _ = socket.ReadMessage(); _ = socket.Close() }()
	}), func(w http.ResponseWriter, r *http.Request) bool { // stands in for ws.Server.RefuseFull
		page := r.Header.Get("Origin") != ""
		if page {
			w.WriteHeader(http.StatusTeapot)
		}
		return page
	}))
	_ = server.Listener.Close()
	server.Listener = bounded
	server.Start()
	t.Cleanup(server.Close)
	url := "ws://" + inner.Addr().String()
	var sockets []*websocket.Conn
	for range 2 {
		socket, _, err := websocket.DefaultDialer.Dial(url, nil)
		require.NoError(t, err)
		sockets = append(sockets, socket)
	}
	for range 3 * margin { // more than margin: refused connections are counted only until they are closed
		_, response, err := websocket.DefaultDialer.Dial(url, nil)
		require.ErrorIs(t, err, websocket.ErrBadHandshake)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "5", response.Header.Get("Retry-After"))
	}
	for path, status := range map[string]int{"/ws": http.StatusTeapot, "/api/x": http.StatusServiceUnavailable} {
		_, response, err := websocket.DefaultDialer.Dial(url+path, http.Header{"Origin": {"https://school.example"}})
		require.ErrorIs(t, err, websocket.ErrBadHandshake)
		require.Equal(t, status, response.StatusCode, "refuse has responded to the upgrade")
	}
	require.NoError(t, sockets[0].Close())
	require.Eventually(t, func() bool {
		socket, _, err := websocket.DefaultDialer.Dial(url, nil)
		if err == nil {
			_ = socket.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	require.Positive(t, maxConnections())
}

// The gateway must not redirect any spelling of a path under /api, because many clients do not send a POST again after
// a redirect.
func TestRoute_RedirectsNothingUnderAPI(t *testing.T) {
	t.Parallel()
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Method", r.Method)
		w.WriteHeader(http.StatusTeapot)
	})
	others := http.NewServeMux()
	others.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	handler := route(api, others)
	for path, status := range map[string]int{
		"/api": http.StatusTeapot, "/api/": http.StatusTeapot, "/api/chat.send_message": http.StatusTeapot,
		"/api//chat.send_message": http.StatusTeapot, "//api/chat.send_message": http.StatusTeapot,
		"/api/../api/chat.send_message": http.StatusTeapot, "/api/./chat.send_message": http.StatusTeapot,
		"/health": http.StatusNoContent, "/apis": http.StatusNotFound,
	} {
		request := httptest.NewRequest(http.MethodPost, "http://gateway", nil)
		request.URL.Path = path
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, request)
		require.Equal(t, status, w.Code, path)
		if status == http.StatusTeapot {
			require.Equal(t, http.MethodPost, w.Header().Get("Method"), path)
		}
	}
}

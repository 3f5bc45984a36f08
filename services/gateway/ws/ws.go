// Package ws carries the client protocol over WebSocket. It handles the handshakes. For each connection it runs a
// goroutine that reads and, while frames wait, another one that writes.
package ws

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/protocol"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Options of a Server.
type Options struct {
	Access *access.Access
	Mesh   *protocol.Parts
	// Handshake is how long a client may take to send its connect frame (0: 10 s).
	Handshake time.Duration
	// Ping is how often a client is sent a ping (0: 25 s). If a client gives no sign of life for two such periods, its
	// connection is closed.
	Ping time.Duration
	// WriteWait is how long a client may take to accept 4 KiB (0: 10 s).
	WriteWait time.Duration
	Guard     *guard.Guard
	Metrics   *Metrics
	Log       *slog.Logger
}

// Server accepts WebSocket connections.
type Server struct {
	options  Options
	upgrader websocket.Upgrader
	wheel    wheel

	refusing atomic.Int64 // number of open connections that RefuseFull has upgraded

	mu     sync.Mutex
	ending bool
	open   sync.WaitGroup
}

// New returns a Server.
func New(o Options) *Server {
	if o.Handshake == 0 {
		o.Handshake = 10 * time.Second
	}
	if o.Ping == 0 {
		o.Ping = 25 * time.Second
	}
	if o.WriteWait == 0 {
		o.WriteWait = 10 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Server{options: o, wheel: wheel{period: o.Ping}, upgrader: websocket.Upgrader{
		HandshakeTimeout: o.Handshake,
		ReadBufferSize:   512, WriteBufferPool: &sync.Pool{}, // the pool is used only for the response to the upgrade
		// The origin is checked by the method upgrade, which responds with a reason if it refuses the origin.
		CheckOrigin: func(*http.Request) bool { return true },
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			refuse(w, status, refusal.New(refusal.Malformed, "%v", reason))
		},
	}}
}

// Stop refuses further connections.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
}

// Wait waits until all connections have ended, or the context ends.
func (s *Server) Wait(ctx context.Context) {
	done := make(chan struct{})
	go func() { s.open.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.open.Add(1)
	return true
}

func (s *Server) leave() { s.open.Done() }

// ServeHTTP upgrades a request to a connection. The connection stays open after ServeHTTP returns.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		stopping := &protocol.RejectedError{Reason: hub.Shutdown,
			Refusal: refusal.New(refusal.Unavailable, "this gateway is stopping; connect again")}
		if browser(r) {
			s.refuseUpgraded(w, r, stopping, func() {})
			return
		}
		refuse(w, http.StatusServiceUnavailable, stopping.Refusal)
		return
	}
	c, h := s.upgrade(w, r)
	if c == nil {
		s.leave()
		return
	}
	// Use another goroutine, because net/http would keep its buffers and the request for as long as the goroutine of
	// ServeHTTP runs.
	go c.serve(context.Background(), h)
}

// browser reports whether the request comes from a web page, which cannot see the response to a refused handshake.
func browser(r *http.Request) bool { return r.Header.Get("Origin") != "" }

// upgrade checks a request and upgrades it. It returns no connection if the request was refused.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) (*connection, handshake) {
	defer s.options.Guard.Recover("upgrade", func() {
		refuse(w, http.StatusInternalServerError, refusal.New(refusal.Internal, "the gateway failed"))
	})
	h := handshake{device: r.UserAgent()}
	if !s.options.Access.Origin(r) {
		refuse(w, http.StatusForbidden, refusal.New(refusal.Unauthorized, "pages of %s may not connect here",
			access.Clip(r.Header.Get("Origin"))))
		return nil, h
	}
	encoding, known := frame.Choose(websocket.Subprotocols(r))
	if !known {
		refuse(w, http.StatusBadRequest, refusal.New(refusal.Malformed,
			"none of the subprotocols in Sec-WebSocket-Protocol is supported; offer %s or %s",
			frame.JSON.Subprotocol(), frame.Protobuf.Subprotocol()))
		return nil, h
	}
	token, err := access.Token(r)
	if err == nil && token != "" {
		var user auth.User
		if user, err = s.options.Access.User(r.Context(), token); err == nil {
			h.user = &user
		}
	}
	if err != nil {
		rejected, status := rejection(err)
		if browser(r) {
			s.refuseUpgraded(w, r, rejected, func() {})
			return nil, h
		}
		refuse(w, status, rejected.Refusal)
		return nil, h
	}
	c := s.accept(w, r, encoding)
	return c, h
}

// rejection returns the error and the HTTP status for a request whose token is malformed, is not accepted, or cannot be
// checked at the moment.
func rejection(err error) (*protocol.RejectedError, int) {
	r := access.Refusal(err)
	switch r.Code {
	case refusal.Unauthorized:
		return &protocol.RejectedError{Reason: hub.Unauthorized, Refusal: r}, http.StatusUnauthorized
	case refusal.Malformed:
		return &protocol.RejectedError{Reason: hub.ProtocolError, Refusal: r}, http.StatusBadRequest
	}
	return &protocol.RejectedError{Reason: hub.Unavailable, Refusal: r}, http.StatusServiceUnavailable
}

// accept upgrades a request. If that fails, accept returns nil, and the upgrader has answered the request.
func (s *Server) accept(w http.ResponseWriter, r *http.Request, e frame.Encoding) *connection {
	var header http.Header
	if len(websocket.Subprotocols(r)) > 0 {
		header = http.Header{"Sec-Websocket-Protocol": {e.Subprotocol()}}
	}
	socket, err := s.upgrader.Upgrade(w, r, header)
	if err != nil {
		return nil
	}
	c := &connection{server: s, socket: socket, net: socket.NetConn(), encoding: e}
	limitUnsent(c.net)
	socket.SetPingHandler(c.pinged)
	socket.SetPongHandler(func(string) error { c.alive(); return nil })
	socket.SetCloseHandler(func(int, string) error { return nil }) // the writer sends a close frame with its own reason
	return c
}

// A full gateway upgrades the request of a web page only to tell the page why it is refused. maxRefusing is the maximum
// number of such connections that are open at a time. Each of them occupies an open file until it closes, usually for
// grace at most.
const maxRefusing = 32

// RefuseFull refuses the request of a web page because this gateway accepts no more connections. It returns false if
// the caller has to respond with an HTTP status instead. This is the case for programs, for pages of origins that may
// not connect, and while maxRefusing web pages are already being refused.
func (s *Server) RefuseFull(w http.ResponseWriter, r *http.Request) bool {
	if !browser(r) || !s.options.Access.Origin(r) {
		return false
	}
	if s.refusing.Add(1) > maxRefusing {
		s.refusing.Add(-1)
		return false
	}
	s.refuseUpgraded(w, r, &protocol.RejectedError{Reason: hub.GatewayFull}, func() { s.refusing.Add(-1) })
	return true
}

// refuseUpgraded upgrades the request of a web page only to send the reason why it is refused. It calls the function
// done when the connection is closed, or if the upgrade fails.
func (s *Server) refuseUpgraded(w http.ResponseWriter, r *http.Request, rejected *protocol.RejectedError, done func()) {
	encoding, _ := frame.Choose(websocket.Subprotocols(r))
	c := s.accept(w, r, encoding)
	if c == nil {
		done()
		return
	}
	go func() {
		defer done()
		defer s.options.Guard.Recover("connection", nil)
		defer func() { _ = c.net.Close() }()
		c.reject("", rejected)
	}()
}

// refuse responds to a handshake with an error.
func refuse(w http.ResponseWriter, status int, r *refusal.Error) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	text, _ := wirejson.Marshal(frame.ErrorOf(r)) // encoding cannot fail, because there are only texts and numbers
	_, _ = w.Write(slices.Concat([]byte(`{"error":`), text, []byte(`}`)))
}

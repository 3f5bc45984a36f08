// Package ws carries sessions over WebSocket: the handshake, one goroutine that reads, one that writes.
package ws

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/session"
	"github.com/edumatrix/interlinked/shared/auth"
)

// Options of a Server.
type Options struct {
	Access *access.Access
	Mesh   *session.Mesh
	// Handshake is how long a client may take to prove who it is, and one that comes back to say what it has; 10 s when 0.
	Handshake time.Duration
	// Ping is how often a client is asked whether it is there, 25 s when 0; one that answers nothing for as long
	// again is gone.
	Ping time.Duration
	// MaxFrame bounds what a client sends at once; 64 KiB when 0.
	MaxFrame int64
	Metrics  *Metrics
	Log      *slog.Logger
}

// Server takes WebSocket connections.
type Server struct {
	options  Options
	upgrader websocket.Upgrader

	mu     sync.Mutex
	ending bool
	open   sync.WaitGroup
}

// New makes a Server.
func New(o Options) *Server {
	if o.Handshake == 0 {
		o.Handshake = 10 * time.Second
	}
	if o.Ping == 0 {
		o.Ping = 25 * time.Second
	}
	if o.MaxFrame == 0 {
		o.MaxFrame = 64 << 10
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Server{options: o, upgrader: websocket.Upgrader{
		HandshakeTimeout: o.Handshake,
		ReadBufferSize:   2048, WriteBufferSize: 2048,
		// Origins are refused before, with a reason.
		CheckOrigin: func(*http.Request) bool { return true },
	}}
}

// Stop takes no more connections.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
}

// Wait returns when all connections have ended, or with the context.
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

// ServeHTTP is one connection, from its handshake to its end.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		refuse(w, http.StatusServiceUnavailable, refusal.New(refusal.Unavailable, "this gateway ends, connect again"))
		return
	}
	defer s.open.Done()
	if !s.options.Access.Origin(r) {
		refuse(w, http.StatusForbidden, refusal.New(refusal.Unauthorized, "pages of %s may not connect here",
			r.Header.Get("Origin")))
		return
	}
	var user *auth.User
	if token := access.Token(r); token != "" {
		u, err := s.options.Access.User(r.Context(), token)
		if err != nil {
			refused := access.Refusal(err)
			status := http.StatusUnauthorized
			if refused.Code != refusal.Unauthorized {
				status = http.StatusServiceUnavailable
			}
			refuse(w, status, refused)
			return
		}
		user = &u
	}
	socket, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	c := &connection{server: s, socket: socket}
	defer func() { _ = socket.Close() }()
	// The request's context lives on after the upgrade only until this returns, which is just right.
	ctx := r.Context()
	opening := session.Opening{Resume: r.URL.Query().Get("resume") == "true", Device: r.URL.Query().Get("device"),
		Patience: s.options.Handshake}
	if user == nil {
		said, ok := c.authenticate(ctx)
		if !ok {
			return
		}
		user, opening.Resume = &said.user, opening.Resume || said.Resume
		opening.Device = cmp.Or(said.Device, opening.Device)
	}
	opening.Device = deviceName(cmp.Or(opening.Device, r.UserAgent()))
	c.run(ctx, *user, opening)
}

// mostDevice is how long the name of a device may be, in characters.
const mostDevice = 64

// deviceName is what of a client's own words its user is shown.
func deviceName(said string) string {
	var name []rune
	for _, r := range said {
		if len(name) == mostDevice {
			break
		}
		if unicode.IsPrint(r) {
			name = append(name, r)
		}
	}
	return strings.TrimSpace(string(name))
}

// refuse answers a handshake that does not come to be a connection.
func refuse(w http.ResponseWriter, status int, r *refusal.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": r.Code, "message": r.Text}})
}

// reasonOf tells why a session could not begin.
func reasonOf(err error) hub.Reason {
	if errors.Is(err, hub.ErrTooMany) {
		return hub.TooManyConnections
	}
	return hub.Shutdown
}

// Package ws carries sessions over WebSocket: the handshake, a goroutine that reads, and one that writes while something
// waits to be written.
package ws

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/session"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Options of a Server.
type Options struct {
	Access *access.Access
	Mesh   *session.Mesh
	// Handshake is how long a client may take to prove who it is, and one that resumes to send its resume frame; 10 s
	// when 0.
	Handshake time.Duration
	// Ping is how often a client is asked whether it is there, 25 s when 0. One that has not shown that for twice as
	// long is gone.
	Ping time.Duration
	// WriteWait is how long a client may take to let some KiB through; 10 s when 0. One that does is not slow.
	WriteWait time.Duration
	// MaxFrame bounds a frame that a client sends, in bytes; MaxFrame (256 KiB) when 0.
	MaxFrame int64
	Guard    *guard.Guard
	Metrics  *Metrics
	Log      *slog.Logger
}

// MaxFrame is the default bound of a frame, in bytes. Limits of commands are in characters, of which JSON may write each
// as twelve bytes (an emoji as two \u escapes): 20,000 of them are 240,000 bytes.
const MaxFrame = 256 << 10

// Server takes WebSocket connections.
type Server struct {
	options  Options
	upgrader websocket.Upgrader
	wheel    wheel

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
	if o.WriteWait == 0 {
		o.WriteWait = 10 * time.Second
	}
	if o.MaxFrame == 0 {
		o.MaxFrame = MaxFrame
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Server{options: o, wheel: wheel{period: o.Ping}, upgrader: websocket.Upgrader{
		HandshakeTimeout: o.Handshake,
		ReadBufferSize:   512, WriteBufferPool: &sync.Pool{}, // nothing is written through it but the answer to the upgrade
		// Origins are refused before, with a reason.
		CheckOrigin: func(*http.Request) bool { return true },
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			refuse(w, status, refusal.New(refusal.Malformed, "%v", reason))
		},
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

func (s *Server) leave() { s.open.Done() }

// ServeHTTP upgrades a request to a connection, which then lives on without the request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		refuse(w, http.StatusServiceUnavailable, refusal.New(refusal.Unavailable, "this gateway is stopping, connect again"))
		return
	}
	c, h := s.upgrade(w, r)
	if c == nil {
		s.leave()
		return
	}
	// Not on this goroutine: net/http would keep its buffers and the request for as long as the connection lives.
	go c.serve(context.Background(), h)
}

// upgrade checks a request and answers it. Without a connection it was refused.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) (*connection, handshake) {
	defer s.options.Guard.Recover("upgrade", func() {
		refuse(w, http.StatusInternalServerError, refusal.New(refusal.Internal, "something went wrong here"))
	})
	var h handshake
	if !s.options.Access.Origin(r) {
		refuse(w, http.StatusForbidden, refusal.New(refusal.Unauthorized, "pages of %s may not connect here",
			access.Clip(r.Header.Get("Origin"))))
		return nil, h
	}
	token, err := access.Token(r)
	if err == nil && token != "" {
		h.user, err = s.options.Access.User(r.Context(), token)
		h.proved = true
	}
	if err != nil {
		refused := access.Refusal(err)
		status := http.StatusServiceUnavailable
		switch refused.Code {
		case refusal.Unauthorized:
			status = http.StatusUnauthorized
		case refusal.Malformed:
			status = http.StatusBadRequest
		}
		refuse(w, status, refused)
		return nil, h
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusBadRequest, refusal.New(refusal.InvalidField, "the parameters of the URL cannot be read (%s): "+
			"write other characters than letters and digits as %%XX", access.Clip(err.Error())))
		return nil, h
	}
	for _, name := range []string{"resume", "device"} {
		if n := len(query[name]); n > 1 {
			refuse(w, http.StatusBadRequest, refusal.New(refusal.InvalidField, "%s is there %d times in the URL", name, n))
			return nil, h
		}
	}
	switch resume := query.Get("resume"); resume {
	case "", "false":
	case "true":
		h.opening.Resume = true
	default:
		refuse(w, http.StatusBadRequest, refusal.New(refusal.InvalidField, "resume has to be true or false, not %q",
			access.Clip(resume)))
		return nil, h
	}
	h.opening.Device = deviceName(cmp.Or(query.Get("device"), r.UserAgent()))
	h.opening.Patience = s.options.Handshake
	socket, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, h // the upgrader has answered
	}
	c := &connection{server: s, socket: socket, net: socket.NetConn()}
	limitUnsent(c.net)
	socket.SetPingHandler(c.pinged)
	socket.SetPongHandler(func(string) error { c.alive(); return nil })
	socket.SetCloseHandler(func(int, string) error { return nil }) // the connection ends with its own reason
	return c, h
}

// maxDevice is how long the name of a device may be, in characters.
const maxDevice = 64

// deviceName is what a user is shown of a client's own words.
func deviceName(said string) string {
	var name []rune
	for _, r := range said {
		if len(name) == maxDevice {
			break
		}
		if unicode.IsPrint(r) {
			name = append(name, r)
		}
	}
	return strings.TrimSpace(string(name))
}

// refuse answers a handshake that does not become a connection.
func refuse(w http.ResponseWriter, status int, r *refusal.Error) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	body, _ := wirejson.Encode(map[string]any{"error": map[string]string{"code": r.Code, "message": r.Text}})
	_, _ = w.Write(body)
}

// reasonOf is why a session could not begin.
func reasonOf(err error) hub.Reason {
	switch {
	case errors.Is(err, hub.ErrTooMany):
		return hub.TooManyConnections
	case errors.Is(err, session.ErrTooFast):
		return hub.TooFast
	case errors.Is(err, hub.ErrClosed):
		return hub.Shutdown
	}
	return hub.Internal
}

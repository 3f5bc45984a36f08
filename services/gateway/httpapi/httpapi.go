// Package httpapi serves commands and queries over plain HTTP, for programs without a WebSocket: POST /api/<name> with
// the data in JSON, or, for queries, POST /api/<package.Service>/<Method> in Connect's protocol.
package httpapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/shared/telemetry"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Headers of a request.
const (
	// HeaderCommandID is the header for the id of a command. A client can repeat a request with the same id, and the
	// command has its effect only once.
	HeaderCommandID = "Command-Id"
	// HeaderOnBehalfOf is the header for the id of the user on whose behalf a program acts. The program's token must
	// have the role "service".
	HeaderOnBehalfOf = "On-Behalf-Of"
)

// Server serves /api/.
type Server struct {
	Access  *access.Access
	Catalog *catalog.Catalog
	Intake  *intake.Intake
	Queries *query.Asker
	// Users limits the requests of each user; nil means no limits. The handlers of connections use the same Users, so
	// that frames and requests count together.
	Users *quota.Users
	// Hub counts the bytes of answers that clients have not read yet, together with the frames that wait for the
	// connections of the same user.
	Hub *hub.Hub
	// WriteWait is how long a client may take to accept 16 KiB of an answer (0: 10 s).
	WriteWait time.Duration
	Guard     *guard.Guard
	Tracer    trace.Tracer
	Log       *slog.Logger
}

func (s *Server) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w := &response{ResponseWriter: out, wait: cmp.Or(s.WriteWait, 10*time.Second)}
	defer s.Guard.Recover("http", func() {
		if w.begun {
			panic(http.ErrAbortHandler) // so that the client does not take a part of the answer for the whole answer
		}
		fail(w, refusal.New(refusal.Internal, "the gateway failed"))
	})
	if !s.Access.Origin(r) {
		failWith(w, http.StatusForbidden, refusal.New(refusal.Unauthorized, "pages of %s may not use this API",
			access.Clip(r.Header.Get("Origin"))))
		return
	}
	allowOrigin(w, r)
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", "POST, OPTIONS")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST, OPTIONS")
		failWith(w, http.StatusMethodNotAllowed, refusal.New(refusal.Malformed, "the method must be POST"))
		return
	}
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api"), "/")
	if err := s.serve(w, r, name); err != nil {
		refused := access.Refusal(err)
		if refused.Code == refusal.Internal {
			s.Log.Error("httpapi: a request failed", "path", access.Clip(r.URL.Path), "error", err)
		}
		if strings.Contains(name, "/") {
			failConnect(w, refused)
			return
		}
		fail(w, refused)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, name string) error {
	token, err := access.Token(r)
	if err != nil {
		return err
	}
	caller, err := s.Access.User(r.Context(), token)
	if err != nil {
		return err
	}
	onBehalfOf, err := header(r, HeaderOnBehalfOf)
	if err != nil {
		return err
	}
	actor, err := caller.ActingFor(onBehalfOf)
	if err != nil {
		return err
	}
	if s.Users != nil {
		user := s.Users.Enter(actor)
		defer user.Leave()
		if !user.Request() {
			return refusal.New(refusal.TooManyWaiting, "you have too many requests in flight; wait for their answers")
		}
		defer user.RequestDone()
		if wait, ok := user.Frame(int(max(0, min(r.ContentLength, frame.MaxMessage))), time.Second); !ok {
			return refusal.New(refusal.TooManyWaiting, "you have sent too many requests in a short time; wait before the next one")
		} else if wait > 0 {
			time.Sleep(wait)
		}
	}
	call, err := s.find(r, name)
	if err != nil {
		return err
	}
	// The trace span has a declared name, never a text of the client. The client's traceparent becomes a link. If it
	// were the parent, clients could force this mesh to record their traces.
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", r.Method), attribute.String("url.path", "/api/"+call.name()))}
	if link, ok := telemetry.Link(r.Header.Get("Traceparent")); ok {
		options = append(options, trace.WithLinks(link))
	}
	ctx, span := s.Tracer.Start(r.Context(), "receive "+call.name(), options...)
	defer span.End()
	body, err := s.body(w, r)
	if err == nil {
		err = call.answer(w, r.WithContext(ctx), actor, body)
	}
	if err != nil {
		span.SetStatus(codes.Error, access.Refusal(err).Code)
	}
	return err
}

// call is the command or query of a request.
type call struct {
	command *catalog.Command
	query   *catalog.Query
	answer  func(w http.ResponseWriter, r *http.Request, actor string, body []byte) error
}

func (c call) name() string {
	if c.command != nil {
		return c.command.Name
	}
	return c.query.Name
}

// find returns the command or query of a request, and checks the query string and the headers of the request.
func (s *Server) find(r *http.Request, name string) (call, error) {
	if r.URL.RawQuery != "" {
		return call{}, refusal.New(refusal.InvalidField, "parameters in the URL are not supported; put the fields in the body")
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return call{}, refusal.New(refusal.Malformed, "Content-Encoding %q is not supported; send the body without one",
			access.Clip(encoding))
	}
	if strings.Contains(name, "/") {
		return s.procedure(r, "/"+name)
	}
	command, asked := access.Public(s.Catalog, name)
	switch {
	case command != nil:
		id, err := header(r, HeaderCommandID)
		return call{command: command, answer: func(w http.ResponseWriter, r *http.Request, actor string, body []byte) error {
			return s.command(w, r, command, actor, id, body)
		}}, err
	case asked != nil:
		return call{query: asked, answer: func(w http.ResponseWriter, r *http.Request, actor string, body []byte) error {
			return s.query(w, r, asked, actor, body)
		}}, nil
	}
	return call{}, access.Unknown(s.Catalog, name)
}

// header returns the value of a header that may be absent but not empty. An empty value probably comes from a variable
// that is not set in the client's program, so it is refused instead of ignored.
func header(r *http.Request, name string) (string, error) {
	value, err := access.Single(r, name)
	if err == nil && value == "" && len(r.Header.Values(name)) > 0 {
		err = refusal.New(refusal.InvalidField, "the header %s is empty", name)
	}
	return value, err
}

func (s *Server) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	// A body that arrives slowly must not hold a connection indefinitely.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(10 * time.Second))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, frame.MaxMessage))
	if err == nil {
		return body, nil
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, refusal.New(refusal.TooLarge, "the body is larger than %d bytes", large.Limit)
	}
	return nil, refusal.New(refusal.Malformed, "the body ended early")
}

// response limits how long a client may take to read an answer: the client must accept each 16 KiB of the answer within
// the time in the field wait. The constant part defines this size.
type response struct {
	http.ResponseWriter
	wait  time.Duration
	begun bool
}

// part is the size of the part of an answer that a client must accept within response.wait, in bytes.
const part = 16 << 10

// Unwrap returns the underlying writer, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (n int, err error) {
	w.begun = true
	control := http.NewResponseController(w.ResponseWriter)
	for len(b) > 0 && err == nil {
		_ = control.SetWriteDeadline(time.Now().Add(w.wait))
		var wrote int
		wrote, err = w.ResponseWriter.Write(b[:min(part, len(b))])
		n, b = n+wrote, b[wrote:]
	}
	return n, err
}

// allowOrigin allows a page to read the answer and to send the API's headers. The page's origin was checked before.
func allowOrigin(w http.ResponseWriter, r *http.Request) {
	origin := r.Header.Get("Origin")
	w.Header().Add("Vary", "Origin")
	if origin == "" {
		return
	}
	w.Header().Set("Access-Control-Allow-Origin", origin)
	w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Methods", "POST, OPTIONS")
		w.Header().Set("Access-Control-Allow-Headers", strings.Join([]string{"Authorization", "Content-Type",
			HeaderCommandID, HeaderOnBehalfOf, "Connect-Protocol-Version", "Connect-Timeout-Ms", "Traceparent"}, ", "))
		w.Header().Set("Access-Control-Max-Age", "600")
	}
}

// shown returns a refusal in the same form as in frames.
func shown(r *refusal.Error) json.RawMessage {
	text, _ := wirejson.Marshal(frame.ErrorOf(r)) // encoding cannot fail, because there are only texts and numbers
	return text
}

func fail(w http.ResponseWriter, r *refusal.Error) { failWith(w, refusal.Status(r.Code), r) }

func failWith(w http.ResponseWriter, status int, r *refusal.Error) {
	write(w, status, map[string]any{"error": shown(r)})
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

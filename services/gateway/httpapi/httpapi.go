// Package httpapi serves commands and queries over plain HTTP, to programs that keep no socket open: POST /api/<name>
// with the JSON of the data, or, for queries, POST /api/<package.Service>/<Method> as Connect has it.
package httpapi

import (
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
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// Headers of a request.
const (
	// HeaderCommandID makes a command repeatable: the same id is one command, however often it is sent.
	HeaderCommandID = "Command-Id"
	// HeaderOnBehalfOf names the user for whom a program of the school acts; its token has the role "service".
	HeaderOnBehalfOf = "On-Behalf-Of"
)

// Server answers under /api/.
type Server struct {
	Access  *access.Access
	Catalog *catalog.Catalog
	Intake  *intake.Intake
	Queries *query.Asker
	// MaxBody bounds a request, as frames are bounded.
	MaxBody int64
	Tracer  trace.Tracer
	Log     *slog.Logger
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.Access.Origin(r) {
		failWith(w, http.StatusForbidden, refusal.New(refusal.Unauthorized, "pages of %s may not ask here",
			r.Header.Get("Origin")))
		return
	}
	allowOrigin(w, r)
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/api/")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST, OPTIONS")
		failWith(w, http.StatusMethodNotAllowed, refusal.New(refusal.Malformed, "POST is the method for everything here"))
		return
	}
	ctx := telemetry.Continue(r.Context(), r.Header.Get("Traceparent"))
	ctx, span := s.Tracer.Start(ctx, "receive "+name, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path)))
	defer span.End()
	if err := s.serve(w, r.WithContext(ctx), name); err != nil {
		refused := access.Refusal(err)
		if refused.Code == refusal.Internal {
			s.Log.Error("httpapi: a request failed", "path", r.URL.Path, "error", err)
		}
		span.SetStatus(codes.Error, refused.Code)
		if strings.Contains(name, "/") {
			failConnect(w, refused)
			return
		}
		fail(w, refused)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, name string) error {
	user, err := s.Access.User(r.Context(), access.Token(r))
	if err != nil {
		return err
	}
	actor, err := user.ActingFor(r.Header.Get(HeaderOnBehalfOf))
	if err != nil {
		return err
	}
	// A body that trickles in must not hold a connection for ever.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(10 * time.Second))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.MaxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return refusal.New(tooLarge, "the body is larger than %d bytes", large.Limit)
		}
		return refusal.New(refusal.Malformed, "the body ended early")
	}
	if strings.Contains(name, "/") {
		return s.procedure(w, r, "/"+name, actor, body)
	}
	command, asked := access.Public(s.Catalog, name)
	switch {
	case command != nil:
		return s.command(w, r, command, actor, body)
	case asked != nil:
		return s.query(w, r, asked, actor, body)
	}
	return access.Unknown(s.Catalog, name)
}

// allowOrigin lets the page that asks read the answer; it was let in before.
func allowOrigin(w http.ResponseWriter, r *http.Request) {
	origin := r.Header.Get("Origin")
	w.Header().Add("Vary", "Origin")
	if origin == "" {
		return
	}
	w.Header().Set("Access-Control-Allow-Origin", origin)
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Methods", "POST, OPTIONS")
		w.Header().Set("Access-Control-Allow-Headers", strings.Join([]string{"Authorization", "Content-Type",
			HeaderCommandID, HeaderOnBehalfOf, "Connect-Protocol-Version", "Connect-Timeout-Ms", "Traceparent"}, ", "))
		w.Header().Set("Access-Control-Max-Age", "600")
	}
}

const tooLarge = "too_large"

// status is what HTTP says of a refusal. A refusal of the domain is none of the client's mistakes in asking: 422.
func status(code string) int {
	switch code {
	case refusal.Queued:
		return http.StatusAccepted
	case refusal.Malformed, refusal.InvalidField:
		return http.StatusBadRequest
	case refusal.Unauthorized:
		return http.StatusUnauthorized
	case refusal.NotAMember:
		return http.StatusForbidden
	case refusal.UnknownType, refusal.NotFound:
		return http.StatusNotFound
	case refusal.IDReused:
		return http.StatusConflict
	case refusal.Expired:
		return http.StatusGone
	case refusal.TooManyWaiting:
		return http.StatusTooManyRequests
	case refusal.Unavailable:
		return http.StatusServiceUnavailable
	case refusal.Failed, refusal.Internal:
		return http.StatusInternalServerError
	case tooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusUnprocessableEntity
}

type problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func fail(w http.ResponseWriter, r *refusal.Error) { failWith(w, status(r.Code), r) }

func failWith(w http.ResponseWriter, status int, r *refusal.Error) {
	write(w, status, map[string]any{"error": problem{r.Code, r.Text}})
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

package httpapi

import (
	"context"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/shared/rpc"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// query answers a query in JSON.
func (s *Server) query(w http.ResponseWriter, r *http.Request, q *catalog.Query, actor string, body []byte) error {
	question, err := query.Read(q, frame.Data{Bytes: body})
	if err != nil {
		return err
	}
	answer, err := s.Queries.Ask(r.Context(), q, question, actor, rpc.Now)
	if err != nil {
		return err
	}
	text, err := wirejson.Marshal(answer)
	if err != nil {
		return err
	}
	return s.write(w, actor, "application/json", text)
}

// write sends an answer. It returns a refusal instead if too many bytes wait for the user already.
func (s *Server) write(w http.ResponseWriter, actor, contentType string, answer []byte) error {
	release, ok := s.Hub.Reserve(actor, len(answer))
	if !ok {
		return refusal.New(refusal.TooManyWaiting, "too many bytes of answers wait for you to read them")
	}
	defer release()
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(answer)
	return nil
}

// procedure returns the call that a request to a Connect procedure makes. The answer has the encoding of the request,
// JSON or Protobuf.
func (s *Server) procedure(r *http.Request, procedure string) (call, error) {
	q := s.public(procedure)
	if q == nil {
		return call{}, access.Unknown(s.Catalog, procedure)
	}
	if v := r.Header.Get("Connect-Protocol-Version"); v != "" && v != "1" {
		return call{}, refusal.New(refusal.InvalidField, "Connect-Protocol-Version must be 1")
	}
	timeout, err := connectTimeout(r.Header.Get("Connect-Timeout-Ms"))
	if err != nil {
		return call{}, err
	}
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := parameters["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		kind = ""
	}
	answer := s.proto
	switch {
	case r.Header.Get("Content-Type") == "", err == nil && kind == "application/json":
		answer = s.query
	case err == nil && kind == "application/proto":
	default:
		return call{}, refusal.New(refusal.Malformed, "Content-Type %q is not supported, only application/json (in UTF-8) and application/proto",
			access.Clip(r.Header.Get("Content-Type")))
	}
	return call{query: q, answer: func(w http.ResponseWriter, r *http.Request, actor string, body []byte) error {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		return answer(w, r.WithContext(ctx), q, actor, body)
	}}, nil
}

// connectTimeout returns the timeout that a Connect client has sent in milliseconds, or query.Deadline if that is
// shorter or the client has sent none.
func connectTimeout(ms string) (time.Duration, error) {
	if ms == "" {
		return query.Deadline, nil
	}
	n, err := strconv.ParseUint(ms, 10, 64)
	if err != nil || len(ms) > 10 {
		return 0, refusal.New(refusal.InvalidField, "Connect-Timeout-Ms must be a number of up to ten digits")
	}
	return min(query.Deadline, time.Duration(n)*time.Millisecond), nil
}

// proto answers a query in Protobuf.
func (s *Server) proto(w http.ResponseWriter, r *http.Request, q *catalog.Query, actor string, body []byte) error {
	question, err := query.Read(q, frame.Data{Encoding: frame.Protobuf, Bytes: body})
	if err != nil {
		return err
	}
	answer, err := s.Queries.Ask(r.Context(), q, question, actor, rpc.Now)
	if err != nil {
		return err
	}
	encoded, err := proto.Marshal(answer)
	if err != nil {
		return err
	}
	return s.write(w, actor, "application/proto", encoded)
}

func (s *Server) public(procedure string) *catalog.Query {
	for _, name := range s.Catalog.QueryNames() {
		if q, _ := s.Catalog.Query(name); q.Public && q.Procedure == procedure {
			return q
		}
	}
	return nil
}

// failConnect writes an error in a form that is valid both for Connect and for the client protocol.
func failConnect(w http.ResponseWriter, r *refusal.Error) {
	codes := map[int]string{
		http.StatusBadRequest: "invalid_argument", http.StatusUnauthorized: "unauthenticated",
		http.StatusForbidden: "permission_denied", http.StatusNotFound: "not_found", http.StatusConflict: "already_exists",
		http.StatusTooManyRequests: "resource_exhausted", http.StatusServiceUnavailable: "unavailable",
		http.StatusInternalServerError: "internal", http.StatusRequestEntityTooLarge: "resource_exhausted",
	}
	code, ok := codes[refusal.Status(r.Code)]
	if !ok {
		code = "failed_precondition"
	}
	if r.Code == refusal.UnknownType {
		code = "unimplemented"
	}
	write(w, refusal.Status(r.Code), map[string]any{"code": code, "message": strings.TrimSpace(r.Text),
		"error": shown(r)})
}

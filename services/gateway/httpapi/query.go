package httpapi

import (
	"mime"
	"net/http"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// query answers a question by its name.
func (s *Server) query(w http.ResponseWriter, r *http.Request, q *catalog.Query, actor string, body []byte) error {
	question, err := query.Read(q, body)
	if err != nil {
		return err
	}
	answer, err := s.Queries.Ask(r.Context(), q, question, actor, 0)
	if err != nil {
		return err
	}
	text, err := wirejson.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
	return nil
}

// procedure answers a question by its method, as Connect clients ask: in JSON or in Protobuf.
func (s *Server) procedure(w http.ResponseWriter, r *http.Request, procedure, actor string, body []byte) error {
	q := s.public(procedure)
	if q == nil {
		return access.Unknown(s.Catalog, procedure)
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch kind {
	case "", "application/json":
		return s.query(w, r, q, actor, body)
	case "application/proto":
	default:
		return refusal.New(refusal.Malformed, "%s is not spoken here, only application/json and application/proto", kind)
	}
	question := q.Request.New().Interface()
	if err := proto.Unmarshal(body, question); err != nil {
		return refusal.New(refusal.Malformed, "the body is no %s", q.Request.Descriptor().FullName())
	}
	if err := query.Check(q, question); err != nil {
		return err
	}
	answer, err := s.Queries.Ask(r.Context(), q, question, actor, 0)
	if err != nil {
		return err
	}
	encoded, err := proto.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(encoded)
	return nil
}

func (s *Server) public(procedure string) *catalog.Query {
	for _, name := range s.Catalog.QueryNames() {
		if q, _ := s.Catalog.Query(name); q.Public && q.Procedure == procedure {
			return q
		}
	}
	return nil
}

// failConnect answers in a form that Connect clients read as their own error, and everybody else as ours.
func failConnect(w http.ResponseWriter, r *refusal.Error) {
	codes := map[int]string{
		http.StatusBadRequest: "invalid_argument", http.StatusUnauthorized: "unauthenticated",
		http.StatusForbidden: "permission_denied", http.StatusNotFound: "not_found", http.StatusConflict: "already_exists",
		http.StatusTooManyRequests: "resource_exhausted", http.StatusServiceUnavailable: "unavailable",
		http.StatusInternalServerError: "internal", http.StatusRequestEntityTooLarge: "resource_exhausted",
	}
	code, ok := codes[status(r.Code)]
	if !ok {
		code = "failed_precondition"
	}
	if r.Code == refusal.UnknownType {
		code = "unimplemented"
	}
	write(w, status(r.Code), map[string]any{"code": code, "message": strings.TrimSpace(r.Text),
		"error": problem{r.Code, r.Text}})
}

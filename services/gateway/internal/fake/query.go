package fake

import (
	"io"
	"net/http"
	"strconv"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Question is a query that an owner gets.
type Question struct {
	Actor    string
	Position catalog.Position // rpc.Now if the answer must contain everything committed so far
	Data     string           // JSON
}

// OnQuery sets the function that answers the queries of this owner with JSON, or refuses them.
func (o *Owner) OnQuery(answer func(name string, q Question) (string, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = answer
}

func (o *Owner) mountQueries(mux *http.ServeMux) {
	for _, name := range o.Catalog.QueryNames() {
		if q, _ := o.Catalog.Query(name); q.Owner == o.Name {
			mux.HandleFunc("POST "+q.Procedure, func(w http.ResponseWriter, r *http.Request) {
				body, err := o.query(q, r)
				if err != nil {
					_ = connect.NewErrorWriter().Write(w, r, rpc.Error(err))
					return
				}
				w.Header().Set("Content-Type", "application/proto")
				_, _ = w.Write(body)
			})
		}
	}
}

func (o *Owner) query(q *catalog.Query, r *http.Request) ([]byte, error) {
	o.mu.Lock()
	answer, away := o.answer, o.here()
	o.mu.Unlock()
	if away != nil || answer == nil {
		return nil, connect.NewError(connect.CodeUnavailable, away)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	question := q.Request.New().Interface()
	if err := proto.Unmarshal(body, question); err != nil {
		return nil, err
	}
	position, _ := strconv.ParseInt(r.Header.Get("Edumatrix-Position"), 10, 64)
	if r.Header.Get("Edumatrix-Position") == "now" {
		position = int64(rpc.Now)
	}
	text, err := answer(q.Name, Question{Actor: r.Header.Get("Edumatrix-Actor"), Position: catalog.Position(position),
		Data: protojson.MarshalOptions{UseProtoNames: true}.Format(question)})
	if err != nil {
		return nil, err
	}
	m := q.Response.New().Interface()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		return nil, err
	}
	return proto.Marshal(m)
}

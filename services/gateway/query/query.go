// Package query sends queries to owners on behalf of clients. It calls the procedure that the catalog declares for a
// query. The Go types of questions and answers also come from the catalog, so this package imports none of them.
package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Asker sends queries to the owners. It is safe for concurrent use.
type Asker struct {
	// Users limits the queries of each user, over all connections and requests. The field must not be changed once the
	// Asker is used.
	Users *quota.Users

	tracer  trace.Tracer
	clients map[string]*connect.Client[[]byte, []byte] // by query name
}

// Deadline is how long an owner may take to answer.
const Deadline = 5 * time.Second

// New returns an Asker for all queries of a catalog, with the default limits for each user. The map peers contains, for
// each owner, the base URL of its listener for other services.
func New(c *catalog.Catalog, peers map[string]string, http connect.HTTPClient, tracer trace.Tracer) *Asker {
	a := &Asker{Users: &quota.Users{}, tracer: tracer, clients: map[string]*connect.Client[[]byte, []byte]{}}
	for _, name := range c.QueryNames() {
		q, _ := c.Query(name)
		a.clients[name] = connect.NewClient[[]byte, []byte](http, peers[q.Owner]+q.Procedure, connect.WithCodec(asItIs{}))
	}
	return a
}

// Read decodes and checks the data of a query. The error is a refusal.
func Read(q *catalog.Query, data frame.Data) (proto.Message, error) {
	m := q.Request.New().Interface()
	if err := data.Read(m); err != nil {
		return nil, err
	}
	return m, q.Check(m)
}

// Ask sends a query to its owner on behalf of a user, as soon as the user's limits in Users allow it. The answer is as
// of the given position or a later one; rpc.Now stands for the newest position when the query arrives. The error
// contains a refusal if the owner has refused or is unavailable, if the user has too many queries, or if ctx ends.
func (a *Asker) Ask(ctx context.Context, q *catalog.Query, m proto.Message, actor string, position catalog.Position) (
	answer proto.Message, err error) {
	user := a.Users.Enter(actor)
	defer user.Leave()
	done, err := user.Ask(ctx)
	if errors.Is(err, quota.ErrAsksTooMuch) {
		return nil, refusal.New(refusal.TooManyWaiting, "too many or too large queries in a short time; wait a moment")
	} else if err != nil {
		return nil, errors.Join(refusal.New(refusal.Unavailable, "the query ended before the owner was asked"), err)
	}
	size := 0
	defer func() { done(size) }()
	ctx, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	ctx, span := a.tracer.Start(ctx, "ask "+q.Name, trace.WithSpanKind(trace.SpanKindInternal),
		trace.WithAttributes(attribute.String("peer.service", q.Owner)))
	defer span.End()
	answer, size, err = a.ask(ctx, q, m, actor, position)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return answer, err
}

// ask calls the owner. It returns the answer, and the size of the answer in bytes.
func (a *Asker) ask(ctx context.Context, q *catalog.Query, m proto.Message, actor string, position catalog.Position) (
	proto.Message, int, error) {
	body, err := proto.Marshal(m)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: encode: %w", q.Name, err)
	}
	ctx = rpc.WithActor(ctx, actor)
	if position > 0 {
		ctx = rpc.WithPosition(ctx, position)
	}
	response, err := a.clients[q.Name].CallUnary(ctx, connect.NewRequest(&body))
	if err != nil {
		return nil, 0, refused(q, err)
	}
	size := len(*response.Msg)
	answer := q.Response.New().Interface()
	if err := proto.Unmarshal(*response.Msg, answer); err != nil {
		return nil, size, fmt.Errorf("%s: decode the answer of %s: %w", q.Name, q.Owner, err)
	}
	return answer, size, nil
}

func refused(q *catalog.Query, err error) error {
	if r, ok := rpc.Refusal(err); ok && r.Code != refusal.Unauthorized {
		return r // the code Unauthorized is excluded above, because it is about the gateway's own credential
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeUnknown:
		return errors.Join(refusal.New(refusal.Unavailable, "%s does not respond; try again", q.Owner), err)
	}
	return fmt.Errorf("%s: ask %s: %w", q.Name, q.Owner, err)
}

// asItIs is Connect's Protobuf codec for messages that are encoded already.
type asItIs struct{}

func (asItIs) Name() string { return "proto" }

func (asItIs) Marshal(m any) ([]byte, error) { return *m.(*[]byte), nil }

func (asItIs) Unmarshal(body []byte, m any) error {
	// Copy the body, because Connect reuses its buffer.
	*m.(*[]byte) = append([]byte(nil), body...)
	return nil
}

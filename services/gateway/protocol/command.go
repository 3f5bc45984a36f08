package protocol

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// command publishes a command. The trace span of the command ends with the first answer, or with the connection.
func (h *Handler) command(ctx context.Context, r frame.Request, declared *catalog.Command) {
	ctx, span := h.parts.Tracer.Start(ctx, "receive "+r.Type, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("edumatrix.connection", h.conn.ID)))
	c, err := intake.Read(declared, h.user, r.CommandID, r.Data, r.ExpiresIn)
	if err != nil {
		refused := traced(access.Refusal(err), span)
		span.SetStatus(codes.Error, refused.Code)
		span.End()
		h.conn.Send(frame.Outcome(r.ID, intake.Answer{CommandID: c.ID, Refusal: refused}.Outcome()))
		return
	}
	span.SetAttributes(attribute.String("edumatrix.stream", c.Stream), attribute.String("edumatrix.command.id", c.ID))
	ended := func() bool { return true }
	if span.IsRecording() { // if the connection ends before the answer, end the span then
		ended = context.AfterFunc(ctx, func() { span.End() })
	}
	id := r.ID // so that the function below does not keep the data of r in memory
	h.sender.Send(ctx, c, func(a intake.Answer) {
		defer h.parts.Guard.Recover("outcome", func() { h.conn.Close(hub.Internal) })
		if a.Late {
			h.conn.Send(frame.LateOutcome(a.Outcome()))
			return
		}
		if a.Refusal != nil {
			span.SetAttributes(attribute.String("edumatrix.code", a.Refusal.Code))
			a.Refusal = traced(a.Refusal, span)
		}
		ended()
		span.End()
		h.conn.Send(frame.Outcome(id, a.Outcome()))
	})
}

// traced returns the given refusal. If the span's trace is recorded, the result is a copy with the id of the trace.
func traced(r *refusal.Error, span trace.Span) *refusal.Error {
	if c := span.SpanContext(); c.IsSampled() && span.IsRecording() {
		with := *r
		with.TraceID = c.TraceID().String()
		return &with
	}
	return r
}

// query sends a query to its owner on a separate goroutine, so that a slow owner does not delay later frames. A query
// is in flight until its answer leaves the connection's queue, or until it fails. So a client that sends queries but
// does not read the answers reaches maxQueries.
func (h *Handler) query(ctx context.Context, r frame.Request, declared *catalog.Query) {
	if refused := h.beginQuery(); refused != nil {
		h.conn.Send(frame.Refused(r.ID, refused))
		return
	}
	position := h.asOf(declared.Owner) // not called on the new goroutine, which may run after later frames were handled
	h.work.Go(func() {
		written := false
		defer func() {
			if !written {
				h.endQuery()
			}
		}()
		defer h.parts.Guard.Recover("query", func() { h.conn.Close(hub.Internal) })
		ctx, span := h.parts.Tracer.Start(ctx, "receive "+r.Type, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		text, err := h.ask(ctx, declared, r, position)
		if err == nil {
			if written = h.conn.Reply(text, h.endQuery); written {
				return
			}
			err = refusal.New(refusal.TooManyWaiting, "too many bytes of answers wait for your connections to read them")
		}
		refused := traced(access.Refusal(err), span)
		if refused.Code == refusal.Internal {
			h.parts.Log.Error("protocol: a query failed", "query", r.Type, "user", h.user, "error", err)
		}
		span.SetStatus(codes.Error, refused.Code)
		h.conn.Send(frame.Refused(r.ID, refused))
	})
}

// asOf returns the position of an owner's log up to which an answer must contain all events. The position covers every
// event that was sent to this connection, and the events of every command whose outcome was sent to this connection, or
// to any client before this connection was opened.
//
// While Shard.AsOf returns 0, asOf returns rpc.Now, which stands for the newest position when the query arrives.
// Shard.AsOf returns 0 until the owner has returned the connection's rooms, possibly longer if the owner's log was
// empty then, and always if the owner has no log.
func (h *Handler) asOf(owner string) catalog.Position {
	// The rooms were read after the connection was opened, so their position covers all commands that were acknowledged
	// earlier.
	position := h.parts.Hub.Shard(owner).AsOf(h.conn)
	if position == 0 {
		return rpc.Now
	}
	return max(position, h.sender.Position(owner))
}

func (h *Handler) beginQuery() *refusal.Error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asking >= maxQueries {
		return refusal.New(refusal.TooManyWaiting, "this connection has %d queries in flight", h.asking)
	}
	if !h.quota.Query() {
		return refusal.New(refusal.TooManyWaiting, "your connections have too many queries in flight")
	}
	h.asking++
	return nil
}

func (h *Handler) endQuery() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.asking--
		h.quota.QueriesDone(1)
	}
}

// ask returns the encoded reply to a query.
func (h *Handler) ask(ctx context.Context, declared *catalog.Query, r frame.Request, position catalog.Position) ([]byte, error) {
	question, err := query.Read(declared, r.Data)
	if err != nil {
		return nil, err
	}
	answer, err := h.parts.Queries.Ask(ctx, declared, question, h.user, position)
	if err != nil {
		return nil, err
	}
	return frame.Answer(r.ID, answer).Encode(h.conn.Encoding())
}

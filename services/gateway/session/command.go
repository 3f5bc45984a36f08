package session

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

// command publishes a command. Its span ends with the first answer.
func (s *Session) command(ctx context.Context, r frame.Request, declared *catalog.Command) {
	ctx, span := s.mesh.Tracer.Start(ctx, "receive "+r.Type, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("mesh.connection", s.conn.ID)))
	c, err := intake.Read(declared, s.user, r.CommandID, r.Data, r.ExpiresIn)
	if err != nil {
		refused := traced(access.Refusal(err), span)
		span.SetStatus(codes.Error, refused.Code)
		span.End()
		s.conn.Send(frame.Outcome(r.ID, intake.Answer{CommandID: c.ID, Refusal: refused}.Outcome()))
		return
	}
	span.SetAttributes(attribute.String("mesh.stream", c.Stream), attribute.String("mesh.command_id", c.ID))
	id := r.ID // copied, so that the frame's data need not be kept
	s.sender.Send(ctx, c, func(a intake.Answer) {
		defer s.mesh.Guard.Recover("outcome", func() { s.conn.Close(hub.Internal) })
		if a.Late {
			s.conn.Send(frame.LateOutcome(a.Outcome()))
			return
		}
		if a.Refusal != nil {
			span.SetAttributes(attribute.String("mesh.refused", a.Refusal.Code))
			a.Refusal = traced(a.Refusal, span)
		}
		span.End()
		s.conn.Send(frame.Outcome(id, a.Outcome()))
	})
}

// traced returns a refusal with the id of the trace, if the trace is recorded.
func traced(r *refusal.Error, span trace.Span) *refusal.Error {
	if c := span.SpanContext(); c.IsSampled() && span.IsRecording() {
		with := *r
		with.TraceID = c.TraceID().String()
		return &with
	}
	return r
}

// query asks an owner on a goroutine of its own, so that a slow owner does not delay later frames. A query is in
// flight until its answer is written, so a client that asks faster than it reads reaches the limit of its queries.
func (s *Session) query(ctx context.Context, r frame.Request, declared *catalog.Query) {
	if refused := s.beginQuery(); refused != nil {
		s.conn.Send(frame.Refused(r.ID, refused))
		return
	}
	position := s.asOf(declared.Owner) // before later frames are handled
	s.work.Go(func() {
		written := false
		defer func() {
			if !written {
				s.endQuery()
			}
		}()
		defer s.mesh.Guard.Recover("query", func() { s.conn.Close(hub.Internal) })
		ctx, span := s.mesh.Tracer.Start(ctx, "receive "+r.Type, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		text, err := s.ask(ctx, declared, r, position)
		if err == nil {
			if written = s.conn.Reply(text, s.endQuery); written {
				return
			}
			err = refusal.New(refusal.TooManyWaiting, "too many bytes of answers wait for your connections to read them")
		}
		refused := traced(access.Refusal(err), span)
		if refused.Code == refusal.Internal {
			s.mesh.Log.Error("session: a query failed", "query", r.Type, "user", s.user, "error", err)
		}
		span.SetStatus(codes.Error, refused.Code)
		s.conn.Send(frame.Refused(r.ID, refused))
	})
}

// asOf returns the position of an owner's log up to which an answer must contain all events: the user's own writes
// from any connection, and every event that this connection was sent.
func (s *Session) asOf(owner string) catalog.Position {
	// The rooms were read after the connection was opened, and so after every command that was acknowledged before.
	position := s.mesh.Hub.Shard(owner).AsOf(s.conn)
	if position == 0 {
		return rpc.Now
	}
	return max(position, s.sender.Position(owner))
}

func (s *Session) beginQuery() *refusal.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking >= maxQueries {
		return refusal.New(refusal.TooManyWaiting, "this connection has %d queries in flight", s.asking)
	}
	if !s.quota.Query() {
		return refusal.New(refusal.TooManyWaiting, "your connections have too many queries in flight")
	}
	s.asking++
	return nil
}

func (s *Session) endQuery() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.asking--
		s.quota.QueriesDone(1)
	}
}

// ask returns the encoded reply to a query.
func (s *Session) ask(ctx context.Context, declared *catalog.Query, r frame.Request, position catalog.Position) ([]byte, error) {
	question, err := query.Read(declared, r.Data)
	if err != nil {
		return nil, err
	}
	answer, err := s.mesh.Queries.Ask(ctx, declared, question, s.user, position)
	if err != nil {
		return nil, err
	}
	return frame.Answer(r.ID, answer).Encode(s.conn.Encoding())
}

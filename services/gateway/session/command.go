package session

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// command sends a command on its way. Its span ends with the first answer.
func (s *Session) command(ctx context.Context, f Frame, declared *catalog.Command) {
	ctx, span := s.mesh.Tracer.Start(ctx, "receive "+f.Type, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("mesh.connection", s.conn.ID)))
	c, err := intake.Read(declared, s.user.ID, f.CommandID, f.Data)
	if err != nil {
		r := access.Refusal(err)
		span.SetStatus(codes.Error, r.Code)
		span.End()
		s.conn.Send(outcome(f.ID, intake.Answer{CommandID: c.ID, Refusal: r}))
		return
	}
	span.SetAttributes(attribute.String("mesh.stream", c.Stream), attribute.String("mesh.command_id", c.ID))
	s.sender.Send(ctx, c, func(a intake.Answer) {
		if !a.Late {
			if a.Refusal != nil {
				span.SetAttributes(attribute.String("mesh.refused", a.Refusal.Code))
			}
			span.End()
		}
		s.conn.Send(outcome(f.ID, a))
	})
}

// query asks beside the frames that follow: a slow owner holds up nothing else.
func (s *Session) query(ctx context.Context, f Frame, declared *catalog.Query) {
	select {
	case s.asking <- struct{}{}:
	default:
		s.conn.Send(Failed(f.ID, refusal.New(refusal.TooManyWaiting,
			"%d queries wait for their answer on this connection", mostQueries)))
		return
	}
	// Taken now, so that the answer has what this connection was told before it asked.
	// One reads one's own writes, and what one has been shown.
	position := max(s.sender.Position(declared.Owner), s.mesh.Hub.View(declared.Owner).Seen(s.conn))
	s.queries.Go(func() {
		defer func() { <-s.asking }()
		ctx, span := s.mesh.Tracer.Start(ctx, "receive "+f.Type, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		data, err := s.ask(ctx, declared, f.Data, position)
		if err != nil {
			r := access.Refusal(err)
			if r.Code == refusal.Internal {
				s.mesh.Log.Error("session: a query failed", "query", f.Type, "user", s.user.ID, "error", err)
			}
			span.SetStatus(codes.Error, r.Code)
			s.conn.Send(Failed(f.ID, r))
			return
		}
		s.conn.Send(answered(f.ID, data))
	})
}

func (s *Session) ask(ctx context.Context, declared *catalog.Query, data []byte, position int64) ([]byte, error) {
	question, err := query.Read(declared, data)
	if err != nil {
		return nil, err
	}
	answer, err := s.mesh.Queries.Ask(ctx, declared, question, s.user.ID, position)
	if err != nil {
		return nil, err
	}
	return wirejson.Marshal(answer)
}

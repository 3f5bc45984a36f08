package intake

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Answer is the answer to a command: its outcome, or a refusal if the command was not accepted, or has no outcome
// within Options.Patience.
type Answer struct {
	CommandID string
	Kind      envelope.Kind // empty if no outcome is known
	Stream    string
	Version   catalog.Version
	Refusal   *refusal.Error // set if the command was refused, failed, queued or unavailable
	// Late reports whether the client got "queued" before.
	Late bool
}

// Outcome returns the answer in the form that clients get.
func (a Answer) Outcome() *gatewayv1.Outcome {
	o := &gatewayv1.Outcome{CommandId: a.CommandID, Kind: gatewayv1.OutcomeKind_OUTCOME_KIND_COMMITTED}
	if a.Stream != "" {
		o.Stream = &a.Stream
	}
	if a.Version > 0 {
		version := int64(a.Version)
		o.Version = &version
	}
	switch {
	case a.Refusal == nil && a.Kind == envelope.Unchanged:
		o.Kind = gatewayv1.OutcomeKind_OUTCOME_KIND_UNCHANGED
	case a.Refusal == nil:
	case a.Refusal.Code == refusal.Queued:
		o.Kind = gatewayv1.OutcomeKind_OUTCOME_KIND_QUEUED
	case a.Kind == envelope.Failed:
		o.Kind, o.Error = gatewayv1.OutcomeKind_OUTCOME_KIND_FAILED, frame.ErrorOf(a.Refusal)
	default:
		o.Kind, o.Error = gatewayv1.OutcomeKind_OUTCOME_KIND_REFUSED, frame.ErrorOf(a.Refusal)
	}
	return o
}

func answerOf(r envelope.Outcome) Answer {
	a := Answer{CommandID: r.CommandID, Kind: r.Kind, Stream: r.Stream, Version: r.Version}
	switch r.Kind {
	case envelope.Refused, envelope.Failed:
		a.Refusal = &refusal.Error{Code: r.Code, Text: r.Text, Field: r.Field}
		if r.Code == "" {
			a.Refusal.Code = refusal.Failed
		}
	}
	return a
}

func refused(c Command, code, format string, args ...any) Answer {
	return Answer{CommandID: c.ID, Stream: c.Stream, Refusal: refusal.New(code, format, args...)}
}

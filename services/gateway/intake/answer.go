package intake

import (
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Answer is what a command came to, or what is known of it when the client has waited long enough.
type Answer struct {
	CommandID string
	Kind      envelope.Kind // empty while it is not known
	Stream    string
	Version   int64
	Refusal   *refusal.Error // refused, failed, queued, unavailable and the like
	// Late says that the client was told "queued" before.
	Late bool
}

func answerOf(r envelope.Result) Answer {
	a := Answer{CommandID: r.CommandID, Kind: r.Kind, Stream: r.Stream, Version: r.Version}
	switch r.Kind {
	case envelope.Refused, envelope.Failed:
		a.Refusal = &refusal.Error{Code: r.Code, Text: r.Text}
		if r.Code == "" {
			a.Refusal.Code = refusal.Failed
		}
	}
	return a
}

func refused(c Command, code, format string, args ...any) Answer {
	return Answer{CommandID: c.ID, Stream: c.Stream, Refusal: refusal.New(code, format, args...)}
}

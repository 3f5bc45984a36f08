package bus

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// headerCorrelation is the header of the correlation id, as the envelope package writes it.
const headerCorrelation = "ce_correlationid"

type correlationKey struct{}

// Correlation copies the correlation id of a message to the handler's context, and to the messages that the handler
// returns. A Publisher then copies the id to each message whose context is the handler's context or derives from it.
// Messages that have a correlation id of their own keep it.
func Correlation(h message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		id := m.Metadata.Get(headerCorrelation)
		if id == "" {
			return h(m)
		}
		m.SetContext(context.WithValue(m.Context(), correlationKey{}, id))
		produced, err := h(m)
		for _, p := range produced {
			if p.Metadata.Get(headerCorrelation) == "" {
				p.Metadata.Set(headerCorrelation, id)
			}
		}
		return produced, err
	}
}

// CorrelationOf returns the correlation id that Correlation has added to a handler's context; empty if there is none.
func CorrelationOf(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// correlate sets the correlation id of a message's record to that of the message's context, unless the message has a
// correlation id itself.
func correlate(m *message.Message, r *kgo.Record) {
	if id := CorrelationOf(m.Context()); id != "" && m.Metadata.Get(headerCorrelation) == "" {
		setHeader(r, headerCorrelation, id)
	}
}

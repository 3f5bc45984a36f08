package bus

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// headerCorrelation is the envelope's.
const headerCorrelation = "ce_correlationid"

type correlationKey struct{}

// Correlation passes the correlation id of a message on: to the handler's context, to what the handler gives back, and
// to what it publishes with that context.
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

// CorrelationOf tells the correlation id of the message that is being handled.
func CorrelationOf(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// correlate gives a record the correlation id of its message's context, unless it has one.
func correlate(m *message.Message, r *kgo.Record) {
	if id := CorrelationOf(m.Context()); id != "" && m.Metadata.Get(headerCorrelation) == "" {
		setHeader(r, headerCorrelation, id)
	}
}

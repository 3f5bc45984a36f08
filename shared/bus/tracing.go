package bus

import (
	"context"
	"errors"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name of the tracer of outgoing messages. The trace spans of this package have the names and attributes
// of OpenTelemetry's semantic conventions for messaging.
const scope = "github.com/edumatrix/interlinked/shared/bus"

// Tracing handles a message within a trace span "process <topic>", which continues the trace in the message's headers.
// The span is in the message's context, and in the contexts of the messages that the handler returns, unless these have
// spans of their own.
func Tracing(tracer trace.Tracer) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			ctx := propagation.TraceContext{}.Extract(m.Context(), propagation.MapCarrier(m.Metadata))
			topic, attributes := received(ctx, m)
			ctx, span := tracer.Start(ctx, "process "+topic, trace.WithSpanKind(trace.SpanKindConsumer),
				trace.WithAttributes(attributes...))
			defer span.End()
			m.SetContext(ctx)
			produced, err := h(m)
			if err != nil {
				span.RecordError(err)
				span.SetStatus(codes.Error, err.Error())
			}
			for _, p := range produced {
				if !trace.SpanContextFromContext(p.Context()).IsValid() {
					p.SetContext(trace.ContextWithSpan(p.Context(), span))
				}
			}
			return produced, err
		}
	}
}

// received returns the topic of a consumed message, and the attributes of the trace span in which it is handled.
func received(ctx context.Context, m *message.Message) (topic string, attributes []attribute.KeyValue) {
	size := attribute.Int("messaging.message.body.size", len(m.Payload))
	d, ok := deliveryOf(ctx)
	if !ok {
		topic = message.SubscribeTopicFromCtx(ctx)
		return topic, append(describe("process", topic, m.UUID), size)
	}
	attributes = append(describe("process", d.record.Topic, m.UUID), size,
		attribute.String("messaging.destination.partition.id", strconv.Itoa(int(d.record.Partition))),
		attribute.Int64("messaging.kafka.offset", d.record.Offset))
	if d.group != "" {
		attributes = append(attributes, attribute.String("messaging.consumer.group.name", d.group))
	}
	if len(d.record.Key) > 0 {
		attributes = append(attributes, attribute.String("messaging.kafka.message.key", string(d.record.Key)))
	}
	return d.record.Topic, attributes
}

func describe(operation, topic, id string) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("messaging.system", "kafka"),
		attribute.String("messaging.destination.name", topic),
		attribute.String("messaging.operation.type", operation),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.message.id", id),
	}
}

// startSend starts the trace span of an outgoing message and puts the span's traceparent into the record's headers. The
// new span is a child of the span in the message's context. The tracer provider of the parent starts the new span,
// because that provider reports spans under the name of the service. Without a span in the context, startSend returns
// nil.
func startSend(topic string, m *message.Message, r *kgo.Record) trace.Span {
	parent := trace.SpanFromContext(m.Context())
	if !parent.SpanContext().IsValid() {
		return nil
	}
	attributes := describe("send", topic, m.UUID)
	if len(r.Key) > 0 {
		attributes = append(attributes, attribute.String("messaging.kafka.message.key", string(r.Key)))
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(m.Context(), "send "+topic,
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attributes...))
	carried := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carried)
	for name, value := range carried {
		setHeader(r, name, value)
	}
	return span
}

// endSends ends the trace spans of the messages of one call of Publish. Each span gets the partition and the offset of
// its message, or the message's error.
func endSends(spans []trace.Span, records []*kgo.Record, messages []*message.Message, err error) {
	failed := map[*message.Message]error{}
	var some *PublishError
	if errors.As(err, &some) {
		for _, f := range some.Failed {
			failed[f.Message] = f.Err
		}
		err = nil
	}
	for i, span := range spans {
		if span == nil {
			continue
		}
		own := err
		if own == nil {
			own = failed[messages[i]]
		}
		if own != nil {
			span.RecordError(own)
			span.SetStatus(codes.Error, own.Error())
		} else {
			span.SetAttributes(
				attribute.String("messaging.destination.partition.id", strconv.Itoa(int(records[i].Partition))),
				attribute.Int64("messaging.kafka.offset", records[i].Offset))
		}
		span.End()
	}
}

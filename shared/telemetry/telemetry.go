// Package telemetry records the traces of one service. Several services may run in one process, each under its own
// service.name, so nothing here is global: code that creates spans gets the tracer as an argument.
package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options configure the traces of a service.
type Options struct {
	// Service is the service.name, unless Settings contains another one.
	Service string
	// Version is the service.version; empty: the version of the program, if its build contains one.
	Version string
	// Settings configure where traces are sent, and which spans are sampled.
	Settings Settings
	// Exporter replaces the exporter of Settings, and exports each span at once. It is for tests.
	Exporter sdktrace.SpanExporter
	Log      *slog.Logger // nil: slog.Default
}

// Telemetry records the traces of one service.
type Telemetry struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Start starts recording. If the collector is unreachable, traces are lost, and a warning is logged at most once a
// minute; the service itself works as usual.
//
// If nothing is exported, no span is recorded, even if a caller's traceparent has the sampled flag. Ids are still
// generated and passed on, so that the trace of another program is not interrupted here.
func Start(ctx context.Context, o Options) (*Telemetry, error) {
	name := o.Service
	if o.Settings.serviceName != "" {
		name = o.Settings.serviceName
	}
	about := append(slices.Clone(o.Settings.attributes), attribute.String("service.name", name),
		attribute.String("service.namespace", "edu-matrix-interlinked"))
	if o.Version == "" {
		o.Version = version()
	}
	if o.Version != "" {
		about = append(about, attribute.String("service.version", o.Version))
	}
	sampler := o.Settings.sampler
	if sampler == nil {
		sampler = sdktrace.ParentBased(sdktrace.AlwaysSample())
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(resource.NewSchemaless(about...))}
	if o.Exporter != nil {
		options = append(options, sdktrace.WithSyncer(o.Exporter))
	} else {
		exporter, err := o.Settings.exporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("export traces to %s: %w", o.Settings.Endpoint(), err)
		}
		if exporter == nil {
			sampler = sdktrace.NeverSample()
		} else {
			if o.Log == nil {
				o.Log = slog.Default()
			}
			// A full queue drops spans; ending a span never blocks.
			options = append(options, sdktrace.WithBatcher(
				&quiet{SpanExporter: exporter, log: o.Log, endpoint: o.Settings.Endpoint()}))
		}
	}
	provider := sdktrace.NewTracerProvider(append(options, sdktrace.WithSampler(sampler))...)
	return &Telemetry{provider, provider.Tracer("github.com/edumatrix/interlinked")}, nil
}

// Tracer returns the tracer of the service.
func (t *Telemetry) Tracer() trace.Tracer { return t.tracer }

// Stop exports the remaining spans, unless ctx ends first, and ends the recording.
func (t *Telemetry) Stop(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// TraceParent returns the W3C traceparent of the span in ctx; empty if there is no span.
func TraceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// Continue returns a context in which new spans are children of the span that a traceparent names. If the traceparent
// is empty or invalid, it returns ctx.
func Continue(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// Link returns a link to the span that a traceparent names, for a span that is not a child of that span. The result ok
// is false if the traceparent is empty or invalid.
func Link(traceparent string) (link trace.Link, ok bool) {
	span := trace.SpanContextFromContext(Continue(context.Background(), traceparent))
	return trace.Link{SpanContext: span}, span.IsValid()
}

// quiet is an exporter that logs failed exports at most once a minute instead of with every batch.
type quiet struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	endpoint string

	mu       sync.Mutex
	reported time.Time
}

// ExportSpans exports spans. It logs an error, unless it has logged one within the last minute, and always returns nil.
func (q *quiet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := q.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.reported) > time.Minute {
		q.reported = time.Now()
		q.log.Warn("traces are lost: the collector does not accept them", "endpoint", q.endpoint, "error", err)
	}
	return nil
}

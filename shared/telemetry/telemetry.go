// Package telemetry makes the traces of one service. Several services live in one process, each under its own
// service.name, so nothing here is global: who makes spans is handed the tracer.
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

// Options say whose traces these are and where they go.
type Options struct {
	// Service is the service.name.
	Service string
	// Version is the service.version; empty: that of the program, where its build knows it.
	Version string
	// Settings say where traces go and which ones.
	Settings Settings
	// Exporter is used instead, and at once: for tests.
	Exporter sdktrace.SpanExporter
	Log      *slog.Logger // nil: slog.Default
}

// Telemetry is the traces of one service.
type Telemetry struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Start begins to trace. A collector that is away costs traces and nothing else.
//
// Without an exporter no span is recorded, whatever the caller of a request asks for: ids are still made and passed on, so
// that the trace of another program is not broken here, but nothing else is spent on them.
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
			// A full queue drops spans; who ends one never waits.
			options = append(options, sdktrace.WithBatcher(
				&quiet{SpanExporter: exporter, log: o.Log, endpoint: o.Settings.Endpoint()}))
		}
	}
	provider := sdktrace.NewTracerProvider(append(options, sdktrace.WithSampler(sampler))...)
	return &Telemetry{provider, provider.Tracer("github.com/edumatrix/interlinked")}, nil
}

// Tracer makes the service's spans.
func (t *Telemetry) Tracer() trace.Tracer { return t.tracer }

// Stop exports what is left and ends.
func (t *Telemetry) Stop(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// TraceParent is the W3C traceparent of the span in ctx; empty when there is none.
func TraceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// Continue makes the span that a traceparent names the parent of spans that start in the context given back.
func Continue(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// Link points at the span that a traceparent names, from one that is not its child; ok is false when it names none.
func Link(traceparent string) (link trace.Link, ok bool) {
	span := trace.SpanContextFromContext(Continue(context.Background(), traceparent))
	return trace.Link{SpanContext: span}, span.IsValid()
}

// quiet tells once a minute that the collector is away, instead of with every batch.
type quiet struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	endpoint string

	mu   sync.Mutex
	told time.Time
}

// ExportSpans exports, and forgives.
func (q *quiet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := q.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.told) > time.Minute {
		q.told = time.Now()
		q.log.Warn("traces are lost: the collector does not take them", "endpoint", q.endpoint, "error", err)
	}
	return nil
}

package telemetry_test

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/edumatrix/interlinked/shared/telemetry"
)

func TestContinue_AnotherServiceContinuesTheTrace(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	start := func(service string) *telemetry.Telemetry {
		tel, err := telemetry.Start(t.Context(), telemetry.Options{Service: service, Exporter: spans})
		if err != nil {
			t.Fatal(err)
		}
		return tel
	}
	ctx, parent := start("gateway").Tracer().Start(context.Background(), "send")
	traceparent := telemetry.TraceParent(ctx)
	parent.End()
	_, child := start("chat").Tracer().Start(telemetry.Continue(context.Background(), traceparent), "process")
	child.End()

	got := spans.GetSpans()
	if len(got) != 2 || got[1].Parent.SpanID() != got[0].SpanContext.SpanID() ||
		got[1].SpanContext.TraceID() != got[0].SpanContext.TraceID() {
		t.Fatalf("%+v", got)
	}
	for i, want := range []string{"gateway", "chat"} {
		if name, _ := got[i].Resource.Set().Value("service.name"); name.AsString() != want {
			t.Errorf("span %d is of %q", i, name.AsString())
		}
	}
	if link, ok := telemetry.Link(traceparent); !ok || link.SpanContext.SpanID() != got[0].SpanContext.SpanID() {
		t.Errorf("link %+v %v", link, ok)
	}
}

func TestTraceParent_IsEmptyWithoutASpan(t *testing.T) {
	t.Parallel()
	if got := telemetry.TraceParent(context.Background()); got != "" {
		t.Errorf("got %q", got)
	}
	if _, ok := telemetry.Link("garbage"); ok {
		t.Error("an invalid traceparent was accepted")
	}
	if ctx := telemetry.Continue(context.Background(), "garbage"); telemetry.TraceParent(ctx) != "" {
		t.Error("an invalid traceparent was continued")
	}
}

func TestStart_AnUnavailableCollectorHasNoEffect(t *testing.T) {
	t.Parallel()
	settings, err := telemetry.ReadSettings(func(name string) string {
		return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	tel, err := telemetry.Start(t.Context(), telemetry.Options{Service: "chat", Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := tel.Tracer().Start(context.Background(), "work")
	span.End()
	if telemetry.TraceParent(ctx) == "" {
		t.Error("no trace id")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = tel.Stop(ended)
}

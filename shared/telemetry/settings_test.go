package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// environment is variables by name.
func environment(variables map[string]string) func(string) string {
	return func(name string) string { return variables[name] }
}

// taker is a collector that speaks gRPC.
type taker struct {
	collectorpb.UnimplementedTraceServiceServer
	got chan *collectorpb.ExportTraceServiceRequest
}

func (c taker) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (
	*collectorpb.ExportTraceServiceResponse, error) {
	c.got <- r
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestStart_ExportsByTheProtocolThatIsSet(t *testing.T) {
	t.Parallel()
	got := make(chan *collectorpb.ExportTraceServiceRequest, 1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	byGRPC := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(byGRPC, taker{got: got})
	ended := make(chan error, 1)
	go func() { ended <- byGRPC.Serve(listener) }()
	defer func() { byGRPC.Stop(); <-ended }()
	byHTTP := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := &collectorpb.ExportTraceServiceRequest{}
		if err := proto.Unmarshal(body, m); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		got <- m
	}))
	defer byHTTP.Close()

	for _, test := range []struct{ endpoint, variable, protocol string }{
		{"http://" + listener.Addr().String(), "", ""},
		{listener.Addr().String(), "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"},
		{byHTTP.URL, "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"},
		{byHTTP.URL + "/", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"},
	} {
		tel, err := start(t.Context(), Options{Service: "chat", Version: "v1.2.3", Endpoint: test.endpoint},
			environment(map[string]string{test.variable: test.protocol}))
		if err != nil {
			t.Fatal(err)
		}
		_, span := tel.Tracer().Start(t.Context(), "work")
		span.End()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := tel.Stop(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		select {
		case r := <-got:
			spans := r.GetResourceSpans()[0]
			said := spans.GetResource().String()
			if spans.GetScopeSpans()[0].GetSpans()[0].GetName() != "work" || !strings.Contains(said, `"chat"`) ||
				!strings.Contains(said, `"v1.2.3"`) {
				t.Errorf("%+v: got %v", test, r)
			}
		default:
			t.Errorf("%+v: nothing came", test)
		}
	}
}

func TestStart_RefusesSettingsThatCannotBeMeant(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ variable, value, endpoint, says string }{
		{"OTEL_TRACES_SAMPLER", "sometimes", "", `OTEL_TRACES_SAMPLER has to be`},
		{"OTEL_TRACES_SAMPLER_ARG", "half", "", `OTEL_TRACES_SAMPLER_ARG has to be a number from 0 to 1, not "half"`},
		{"OTEL_TRACES_SAMPLER_ARG", "2", "", "OTEL_TRACES_SAMPLER_ARG"},
		{"OTEL_TRACES_SAMPLER_ARG", "NaN", "", "OTEL_TRACES_SAMPLER_ARG"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "c:4317", `OTEL_EXPORTER_OTLP_PROTOCOL has to be grpc or http/protobuf`},
		{"", "", "http://user:secret@[::1", "OTEL_EXPORTER_OTLP_ENDPOINT has to look like"},
		{"", "", "udp://c", "OTEL_EXPORTER_OTLP_ENDPOINT has to look like"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "x", "http://user:secret@c", "export traces to http://user:xxxxx@c"},
	} {
		variables := map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", test.variable: test.value}
		_, err := start(t.Context(), Options{Service: "chat", Endpoint: test.endpoint}, environment(variables))
		if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: got %v", test, err)
		}
	}
}

func TestStart_SamplesAsItIsSet(t *testing.T) {
	t.Parallel()
	sampledParent := trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled}))
	for _, test := range []struct {
		sampler, arg     string
		alone, continued bool
	}{
		{"", "", true, true},
		{"parentbased_always_on", "", true, true},
		{"parentbased_always_off", "", false, true},
		{"parentbased_traceidratio", "0", false, true},
		{"parentbased_traceidratio", "1", true, true},
		{"parentbased_traceidratio", "", true, true},
		{"traceidratio", "0", false, false},
		{"always_off", "ignored", false, false},
		{"always_on", "", true, true},
	} {
		tel, err := start(t.Context(), Options{Service: "chat", Exporter: tracetest.NewNoopExporter()},
			environment(map[string]string{"OTEL_TRACES_SAMPLER": test.sampler, "OTEL_TRACES_SAMPLER_ARG": test.arg}))
		if err != nil {
			t.Fatal(err)
		}
		for ctx, want := range map[context.Context]bool{context.Background(): test.alone, sampledParent: test.continued} {
			_, span := tel.Tracer().Start(ctx, "work")
			if got := span.SpanContext().IsSampled(); got != want {
				t.Errorf("%+v: sampled %v", test, got)
			}
			if !span.SpanContext().IsValid() {
				t.Errorf("%+v: no trace id to pass on", test)
			}
			span.End()
		}
	}
}

// broken is an exporter whose collector takes nothing.
type broken struct{ sdktrace.SpanExporter }

func (broken) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	return errors.New("connection refused")
}

func TestQuiet_TellsOnceThatTracesAreLost(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	q := &quiet{SpanExporter: broken{}, log: slog.New(slog.NewTextHandler(&said, nil)), endpoint: "http://c:4317"}
	for range 100 {
		if err := q.ExportSpans(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(said.String(), "\n"); n != 1 {
		t.Errorf("%d lines: %s", n, said.String())
	}
}

func TestStart_WhoEndsASpanNeverWaits(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	tel, err := start(t.Context(), Options{Service: "chat", Endpoint: listener.Addr().String()}, environment(nil))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for range 20_000 { // ten times what the queue holds
		_, span := tel.Tracer().Start(t.Context(), "work", trace.WithAttributes(attribute.Int("n", 1)))
		span.End()
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = tel.Stop(ctx)
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("stopped after %s", took)
	}
}

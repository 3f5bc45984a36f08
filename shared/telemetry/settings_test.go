package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// environment returns a function that looks up variables. The parameter set contains the variables in the form
// NAME=value; the last one of a name counts.
func environment(set ...string) func(string) string {
	return func(name string) string {
		for _, pair := range slices.Backward(set) {
			if value, found := strings.CutPrefix(pair, name+"="); found {
				return value
			}
		}
		return ""
	}
}

func settings(t *testing.T, set ...string) Settings {
	t.Helper()
	s, err := ReadSettings(environment(set...))
	require.NoError(t, err)
	return s
}

// taker is a trace collector that accepts trace spans by gRPC.
type taker struct {
	collectorpb.UnimplementedTraceServiceServer
	got chan *collectorpb.ExportTraceServiceRequest
}

func (c taker) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (
	*collectorpb.ExportTraceServiceResponse, error) {
	c.got <- r
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestStart_ExportsByTheConfiguredProtocol(t *testing.T) {
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

	for _, set := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + listener.Addr().String(),
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + listener.Addr().String() + " OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_TRACES_EXPORTER=otlp",
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + byHTTP.URL + " OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + byHTTP.URL + "/ OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + byHTTP.URL + "/v1/traces OTEL_EXPORTER_OTLP_ENDPOINT=http://elsewhere:1 " +
			"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://user:hidden@" + listener.Addr().String(),
	} {
		tel, err := Start(t.Context(), Options{Service: "chat", Version: "v1.2.3", Settings: settings(t, strings.Fields(set)...)})
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
				t.Errorf("%s: got %v", set, r)
			}
		default:
			t.Errorf("%s: no spans arrived", set)
		}
	}
}

func TestReadSettings_RefusesInvalidValues(t *testing.T) {
	t.Parallel()
	for set, wantText := range map[string]string{
		"OTEL_TRACES_SAMPLER=sometimes":                           "OTEL_TRACES_SAMPLER has to be",
		"OTEL_TRACES_SAMPLER_ARG=half":                            `OTEL_TRACES_SAMPLER_ARG has to be a number from 0 to 1, not "half"`,
		"OTEL_TRACES_SAMPLER_ARG=2":                               "OTEL_TRACES_SAMPLER_ARG",
		"OTEL_TRACES_SAMPLER_ARG=NaN":                             "OTEL_TRACES_SAMPLER_ARG",
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/json":                   "OTEL_EXPORTER_OTLP_PROTOCOL has to be grpc or http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://user:hidden@[::1":     "OTEL_EXPORTER_OTLP_ENDPOINT has to look like",
		"OTEL_EXPORTER_OTLP_ENDPOINT=udp://c":                     "OTEL_EXPORTER_OTLP_ENDPOINT has to look like",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://:4317":         "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT has to look like",
		"OTEL_EXPORTER_OTLP_HEADERS=Authorization: Bearer hidden": "OTEL_EXPORTER_OTLP_HEADERS has to look like name=value",
		"OTEL_EXPORTER_OTLP_HEADERS=Authorization=%zzhidden":      "OTEL_EXPORTER_OTLP_HEADERS has to look like name=value",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS=a b=hidden":            "OTEL_EXPORTER_OTLP_TRACES_HEADERS has to look like",
		"OTEL_EXPORTER_OTLP_HEADERS=a=hidden%0Ab:c":               "OTEL_EXPORTER_OTLP_HEADERS has to look like",
		"OTEL_EXPORTER_OTLP_TIMEOUT=10s":                          `OTEL_EXPORTER_OTLP_TIMEOUT has to be a number, not "10s"`,
		"OTEL_EXPORTER_OTLP_COMPRESSION=zip":                      "OTEL_EXPORTER_OTLP_COMPRESSION has to be gzip or none",
		"OTEL_EXPORTER_OTLP_CERTIFICATE=/no/such/file":            "OTEL_EXPORTER_OTLP_CERTIFICATE: open /no/such/file",
		"OTEL_TRACES_EXPORTER=zipkin":                             `OTEL_TRACES_EXPORTER has to be otlp or none, not "zipkin"`,
		"OTEL_SDK_DISABLED=maybe":                                 "OTEL_SDK_DISABLED has to be true or false",
		"OTEL_RESOURCE_ATTRIBUTES=prod":                           "OTEL_RESOURCE_ATTRIBUTES has to look like",
	} {
		_, err := ReadSettings(environment("OTEL_TRACES_SAMPLER=parentbased_traceidratio", set))
		require.ErrorContains(t, err, wantText, set)
		require.NotContains(t, err.Error(), "hidden")
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestReadSettings_EndpointIsEmptyWithoutAnExporter(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"":                                   "",
		"OTEL_EXPORTER_OTLP_ENDPOINT=c:4317": "http://c:4317",
		"OTEL_EXPORTER_OTLP_ENDPOINT=https://u:hidden@c:4317":                                     "https://u:xxxxx@c:4317",
		"OTEL_EXPORTER_OTLP_ENDPOINT=c:4317 OTEL_EXPORTER_OTLP_INSECURE=false":                    "https://c:4317",
		"OTEL_EXPORTER_OTLP_ENDPOINT=c:4317 OTEL_SDK_DISABLED=TRUE":                               "",
		"OTEL_EXPORTER_OTLP_ENDPOINT=c:4317 OTEL_SDK_DISABLED=false":                              "http://c:4317",
		"OTEL_EXPORTER_OTLP_ENDPOINT=c:4317 OTEL_TRACES_EXPORTER=none":                            "",
		"OTEL_TRACES_EXPORTER=otlp":                                                               "http://localhost:4317",
		"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf":                     "http://localhost:4318/v1/traces",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://[::1]:4318 OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf": "http://[::1]:4318/v1/traces",
	} {
		require.Equal(t, want, settings(t, strings.Fields(set)...).Endpoint(), set)
	}
	s := settings(t, "OTEL_EXPORTER_OTLP_HEADERS=Authorization=Bearer%20hidden,x=y", "OTEL_SERVICE_NAME=own",
		"OTEL_RESOURCE_ATTRIBUTES=deployment.environment=prod,service.name=other")
	require.Equal(t, map[string]string{"Authorization": "Bearer hidden", "x": "y"}, s.headers)
	require.Equal(t, "own", s.serviceName)
	require.Equal(t, []attribute.KeyValue{attribute.String("deployment.environment", "prod")}, s.attributes)
	require.NotContains(t, fmt.Sprintf("%v %+v %#v %s", s, s, s, s), "hidden")
}

func TestStart_RecordsNothingWithoutAnExporter(t *testing.T) {
	t.Parallel()
	for _, set := range []string{"", "OTEL_TRACES_SAMPLER=always_on",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1 OTEL_SDK_DISABLED=true",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1 OTEL_TRACES_EXPORTER=none"} {
		tel, err := Start(t.Context(), Options{Service: "chat", Settings: settings(t, strings.Fields(set)...)})
		require.NoError(t, err)
		const foreign = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" // the flag 01 means: sampled
		for _, ctx := range []context.Context{t.Context(), Continue(t.Context(), foreign)} {
			ctx, span := tel.Tracer().Start(ctx, "work")
			require.False(t, span.IsRecording(), set)
			require.True(t, span.SpanContext().IsValid(), "the ids are passed on")
			require.NotEmpty(t, TraceParent(ctx))
		}
		_, span := tel.Tracer().Start(Continue(t.Context(), foreign), "work")
		require.Equal(t, "0af7651916cd43dd8448eb211c80319c", span.SpanContext().TraceID().String(),
			"the trace of another program is continued")
	}
}

func TestStart_SamplesAsConfigured(t *testing.T) {
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
		tel, err := Start(t.Context(), Options{Service: "chat", Exporter: tracetest.NewNoopExporter(),
			Settings: settings(t, "OTEL_TRACES_SAMPLER="+test.sampler, "OTEL_TRACES_SAMPLER_ARG="+test.arg)})
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

// broken is an exporter that always fails, as if its collector accepted no trace spans.
type broken struct{ sdktrace.SpanExporter }

func (broken) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	return errors.New("connection refused")
}

func TestQuiet_LogsOnceThatTracesAreLost(t *testing.T) {
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

func TestStart_EndingASpanNeverBlocks(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	tel, err := Start(t.Context(), Options{Service: "chat",
		Settings: settings(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+listener.Addr().String())})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for range 20_000 { // ten times as many trace spans as the exporter queues
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

package rpc_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/rpc"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

type owner struct {
	meshv1connect.UnimplementedOwnerServiceHandler
	readLog func(context.Context) error
}

func (o owner) ReadLog(ctx context.Context, _ *connect.Request[meshv1.ReadLogRequest]) (*connect.Response[meshv1.ReadLogResponse], error) {
	if err := o.readLog(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ReadLogResponse{Head: rpc.Position(ctx)}), nil
}

type fixture struct {
	url    string
	client meshv1connect.OwnerServiceClient
	spans  *tracetest.InMemoryExporter
}

func serve(t *testing.T, credential rpc.Credential, readLog func(context.Context) error) fixture {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Start(t.Context(), telemetry.Options{Service: "chat", Exporter: spans})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := rpc.NewServer(rpc.ServerOptions{Listener: listener, Credential: "the right one", Log: log, Tracer: tel.Tracer(),
		Health: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })})
	if err != nil {
		t.Fatal(err)
	}
	s.Handle(meshv1connect.NewOwnerServiceHandler(owner{readLog: readLog}, rpc.Interceptors(log, tel.Tracer())))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	url := "http://" + s.Addr().String()
	return fixture{url, meshv1connect.NewOwnerServiceClient(rpc.NewClient(credential, tel.Tracer()), url), spans}
}

func TestCall_CarriesWhoItIsForAndItsTrace(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(ctx context.Context) error {
		if rpc.Actor(ctx) != "alice" {
			t.Errorf("made for %q", rpc.Actor(ctx))
		}
		return nil
	})
	ctx := rpc.WithPosition(rpc.WithActor(t.Context(), "alice"), 42)
	answer, err := f.client.ReadLog(ctx, connect.NewRequest(&meshv1.ReadLogRequest{}))
	if err != nil || answer.Msg.GetHead() != 42 {
		t.Fatalf("%v %v", answer, err)
	}
	got := f.spans.GetSpans()
	if len(got) != 2 || got[0].Parent.SpanID() != got[1].SpanContext.SpanID() {
		t.Fatalf("spans %+v", got)
	}
}

func TestCall_NeedsTheCredential(t *testing.T) {
	t.Parallel()
	for _, credential := range []rpc.Credential{"", "another"} {
		f := serve(t, credential, func(context.Context) error { t.Error("it was let through"); return nil })
		_, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
		if connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("credential %q: %v", string(credential), err)
		}
		if r, ok := rpc.Refusal(err); !ok || r.Code != refusal.Unauthorized {
			t.Errorf("refusal %v", r)
		}
		response, err := http.Get(f.url + "/health")
		if err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("health without credential: %v %v", response, err)
		} else {
			_ = response.Body.Close()
		}
	}
}

func TestCall_RefusalsComeBackAsTheyWere_OtherErrorsWithoutDetail(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fails error
		want  refusal.Error
	}{
		{refusal.New("not_a_member", "you are no member of it"), refusal.Error{Code: "not_a_member", Text: "you are no member of it"}},
		{refusal.New("direct_conversation", "no"), refusal.Error{Code: "direct_conversation", Text: "no"}},
		{errors.New("password=secret"), refusal.Error{Code: refusal.Internal, Text: "something went wrong; it was logged"}},
	} {
		f := serve(t, "the right one", func(context.Context) error { return test.fails })
		_, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
		if got, ok := rpc.Refusal(err); !ok || *got != test.want {
			t.Errorf("%v came back as %v", test.fails, err)
		}
	}
}

func TestCall_APanicCostsOneCall(t *testing.T) {
	t.Parallel()
	panics := true
	f := serve(t, "the right one", func(context.Context) error {
		if panics {
			panics = false
			panic("boom")
		}
		return nil
	})
	if _, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{})); connect.CodeOf(err) != connect.CodeInternal {
		t.Fatal(err)
	}
	if _, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{})); err != nil {
		t.Fatal(err)
	}
}

func TestClient_TellsThatNobodyAnswers(t *testing.T) {
	t.Parallel()
	tel, _ := telemetry.Start(t.Context(), telemetry.Options{Service: "x"})
	c := meshv1connect.NewOwnerServiceClient(rpc.NewClient("c", tel.Tracer()), "http://127.0.0.1:1")
	if _, err := c.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{})); !errors.Is(err, rpc.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

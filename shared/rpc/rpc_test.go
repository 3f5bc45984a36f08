package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/retry"
	"github.com/edumatrix/interlinked/shared/rpc"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

type owner struct {
	meshv1connect.UnimplementedOwnerServiceHandler
	readLog func(context.Context) error
}

func (o owner) ReadLog(ctx context.Context, _ *connect.Request[meshv1.ReadLogRequest]) (
	*connect.Response[meshv1.ReadLogResponse], error) {
	if err := o.readLog(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ReadLogResponse{Head: int64(rpc.Position(ctx))}), nil
}

type fixture struct {
	url    string
	client meshv1connect.OwnerServiceClient
	http   *http.Client
	stop   func()
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
	s, err := rpc.NewServer(rpc.ServerOptions{Listener: listener, Credential: "the right one", Log: log,
		Tracer: tel.Tracer(),
		Health: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })})
	if err != nil {
		t.Fatal(err)
	}
	s.Handle(meshv1connect.NewOwnerServiceHandler(owner{readLog: readLog}, rpc.Interceptors(log, tel.Tracer())))
	s.Handle("/plain", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }))
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
	client := rpc.NewClient(credential, tel.Tracer())
	return fixture{url, meshv1connect.NewOwnerServiceClient(client, url), client, stop, spans}
}

func TestCall_CarriesItsActorAndTrace(t *testing.T) {
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
		f := serve(t, credential, func(context.Context) error { t.Error("the handler was called"); return nil })
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

func TestCall_ReturnsRefusalsUnchangedAndOtherErrorsWithoutDetail(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fails error
		want  refusal.Error
	}{
		{refusal.New("not_a_member", "you are not a member"), refusal.Error{Code: "not_a_member", Text: "you are not a member"}},
		{refusal.NewField("limit", "is too large"), refusal.Error{Code: refusal.InvalidField, Text: "limit is too large", Field: "limit"}},
		{refusal.New("direct_conversation", "no"), refusal.Error{Code: "direct_conversation", Text: "no"}},
		{errors.New("password=secret"), refusal.Error{Code: refusal.Internal, Text: "something went wrong; it was logged"}},
	} {
		f := serve(t, "the right one", func(context.Context) error { return test.fails })
		_, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
		if got, ok := rpc.Refusal(err); !ok || *got != test.want {
			t.Errorf("%v came back as %v", test.fails, err)
		}
		for _, span := range f.spans.GetSpans() {
			if strings.Contains(fmt.Sprintf("%+v", span), "secret") {
				t.Errorf("the span %s contains an error that only the log may contain", span.Name)
			}
		}
	}
}

// A field of a request contains a text that PostgreSQL cannot store. The request must be refused before the handler is
// called, even if the field is in a nested message or a list.
func TestCall_WithATextThatCannotBeStoredIsRefused(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(context.Context) error { t.Error("the handler was called"); return nil })
	_, readLog := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{Stream: "conversation:a\x00"}))
	_, rooms := f.client.Rooms(t.Context(), connect.NewRequest(&meshv1.RoomsRequest{Users: []string{"ann", "b\x00b"}}))
	_, look := f.client.AuthorizeSubscriptions(t.Context(), connect.NewRequest(&meshv1.AuthorizeSubscriptionsRequest{Subscriptions: []*meshv1.Subscription{
		{User: "ann", Room: "post:1"}, {User: "ann", Room: "post:\x00"}}}))
	_, resume := f.client.Resume(t.Context(), connect.NewRequest(&meshv1.ResumeRequest{Resumers: []*meshv1.Resumer{
		{User: "ann", Subscriptions: []string{"post:1", "\x00"}}}}))
	for field, err := range map[string]error{"stream": readLog, "users": rooms, "subscriptions.room": look, "resumers.subscriptions": resume} {
		if r, ok := rpc.Refusal(err); !ok || r.Code != refusal.InvalidField ||
			!strings.HasPrefix(r.Text, field+" contains the character U+0000") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestCall_APanicFailsOnlyItsCall(t *testing.T) {
	t.Parallel()
	panics := true
	f := serve(t, "the right one", func(context.Context) error {
		if panics {
			panics = false
			panic("boom")
		}
		return nil
	})
	_, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
	if connect.CodeOf(err) != connect.CodeInternal {
		t.Fatal(err)
	}
	response, err := f.http.Get(f.url + "/plain")
	if err != nil || response.StatusCode != http.StatusInternalServerError {
		t.Fatalf("%v %v", response, err)
	}
	_ = response.Body.Close()
	if _, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{})); err != nil {
		t.Fatal(err)
	}
}

func TestClient_ReportsThatAServiceIsUnreachable(t *testing.T) {
	t.Parallel()
	tel, _ := telemetry.Start(t.Context(), telemetry.Options{Service: "x"})
	c := meshv1connect.NewOwnerServiceClient(rpc.NewClient("c", tel.Tracer()), "http://127.0.0.1:1")
	_, err := c.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
	if !errors.Is(err, rpc.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

func TestServer_OnlyHealthNeedsNoCredential(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(context.Context) error { t.Error("the handler was called"); return nil })
	for path, want := range map[string]int{
		"/health": 200, "/livez": 200, "/readyz": 200, "/metrics": 200,
		"/": 401, "/health/": 401, "/healthz": 401, "//health": 401, "/metrics/more": 401, "/HEALTH": 401, "/plain": 401,
		"/health/../plain": 401, meshv1connect.OwnerServiceReadLogProcedure: 401, "/what/there/is/not": 401,
	} {
		for _, header := range []string{"", "Bearer", "Bearer ", "Basic the right one", "the right one",
			"Bearer the right on", "Bearer the right one too"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			if header != "" {
				r.Header.Set("Authorization", header)
			}
			response, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%s with %q: status %d, want %d", path, header, response.StatusCode, want)
			}
		}
	}
	response, err := f.http.Get(f.url + "/what/there/is/not")
	if err != nil || response.StatusCode != http.StatusNotFound {
		t.Fatalf("with the credential: %v %v", response, err)
	}
	_ = response.Body.Close()
}

func TestServer_BoundsTheSizeOfRequests(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(context.Context) error { t.Error("the handler was called"); return nil })
	tel, err := telemetry.Start(t.Context(), telemetry.Options{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	large := connect.NewRequest(&meshv1.ReadLogRequest{Stream: strings.Repeat("s", 17<<20)})
	if _, err := f.client.ReadLog(t.Context(), large); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("uncompressed: %v", connect.CodeOf(err))
	}
	// Compressed, 17 MiB of one letter would be only 17 KiB, so the server must not accept compressed requests.
	compressing := meshv1connect.NewOwnerServiceClient(rpc.NewClient("the right one", tel.Tracer()), f.url,
		connect.WithSendGzip())
	if _, err := compressing.ReadLog(t.Context(), large); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("compressed: %v", connect.CodeOf(err))
	}
}

func TestCall_IsNotCompressed(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(context.Context) error { return nil })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+meshv1connect.OwnerServiceReadLogProcedure,
		strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer the right one")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept-Encoding", "gzip")
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if got := response.Header.Get("Content-Encoding"); response.StatusCode != http.StatusOK || got != "" {
		t.Errorf("status %d, encoding %q", response.StatusCode, got)
	}
}

func TestCall_HasADeadline(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if !ok || time.Until(deadline) > time.Minute {
			t.Errorf("deadline %v %v", deadline, ok)
		}
		if rpc.Actor(ctx) == "waits" {
			<-ctx.Done()
			return fmt.Errorf("read: %w", ctx.Err())
		}
		return nil
	})
	if _, err := f.client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(rpc.WithActor(t.Context(), "waits"), 100*time.Millisecond)
	defer cancel()
	_, err := f.client.ReadLog(ctx, connect.NewRequest(&meshv1.ReadLogRequest{}))
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if r, ok := rpc.Refusal(err); ok {
		t.Errorf("the error should not be a refusal: %v", r)
	}
}

func TestError_DistinguishesADeadlineFromAFailure(t *testing.T) {
	t.Parallel()
	for want, err := range map[connect.Code]error{
		connect.CodeDeadlineExceeded: fmt.Errorf("read: %w", context.DeadlineExceeded),
		connect.CodeCanceled:         fmt.Errorf("read: %w", context.Canceled),
		connect.CodeUnavailable:      fmt.Errorf("read: %w", retry.Unavailable("postgres", errors.New("gone"))),
		connect.CodeInternal:         errors.New("read: broken"),
		connect.CodePermissionDenied: fmt.Errorf("read: %w", refusal.New(refusal.NotAMember, "no")),
	} {
		if got := connect.CodeOf(rpc.Error(err)); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

func TestClient_DoesNotSendTheCredentialToARedirect(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the redirect was followed, with %q", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	peer := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer peer.Close()
	tel, err := telemetry.Start(t.Context(), telemetry.Options{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	c := meshv1connect.NewOwnerServiceClient(rpc.NewClient("c", tel.Tracer()), peer.URL)
	if _, err := c.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{})); err == nil {
		t.Error("an invalid response was accepted")
	}
}

func TestClient_ACancelledCallDoesNotMeanUnreachable(t *testing.T) {
	t.Parallel()
	f := serve(t, "the right one", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err := f.client.ReadLog(ctx, connect.NewRequest(&meshv1.ReadLogRequest{}))
	if errors.Is(err, rpc.ErrUnreachable) || connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("got %v", err)
	}
}

func TestServer_FinishesCallsInFlight(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	f := serve(t, "the right one", func(context.Context) error { close(begun); <-finish; return nil })
	answered := make(chan error, 1)
	go func() {
		_, err := f.client.ReadLog(context.Background(), connect.NewRequest(&meshv1.ReadLogRequest{}))
		answered <- err
	}()
	<-begun
	f.stop()
	for {
		c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		if err != nil {
			break // the server no longer accepts connections
		}
		_ = c.Close()
	}
	close(finish)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

const (
	largestBody = 16 << 20
	stopWithin  = 5 * time.Second
)

// ServerOptions say where a service listens and whom it answers.
type ServerOptions struct {
	Addr       string       // host:port
	Listener   net.Listener // instead of Addr
	Credential Credential
	// Health answers /health, /livez, /readyz and /metrics, which need no credential.
	Health http.Handler
	Log    *slog.Logger
	Tracer trace.Tracer
}

// Server is the inner listener of a service.
type Server struct {
	o        ServerOptions
	listener net.Listener
	mux      *http.ServeMux
}

// NewServer listens; it answers once it runs.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Credential == "" {
		return nil, errors.New("inner listener: no service credential is set (SERVICE_SECRET, or JWT_SECRET of which one is made)")
	}
	s := &Server{o: o, listener: o.Listener, mux: http.NewServeMux()}
	if s.listener == nil {
		var err error
		if s.listener, err = net.Listen("tcp", o.Addr); err != nil {
			return nil, fmt.Errorf("listen on %s (set the port with PORT): %w", o.Addr, err)
		}
	}
	if o.Health != nil {
		for _, path := range []string{"/health", "/livez", "/readyz", "/metrics"} {
			s.mux.Handle(path, o.Health)
		}
	}
	return s, nil
}

// Handle serves a path, such as a Connect service's, to callers that have the credential.
func (s *Server) Handle(path string, h http.Handler) { s.mux.Handle(path, s.o.Credential.require(h)) }

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers until ctx ends, and then finishes what is under way, for up to 5 s.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{Handler: http.MaxBytesHandler(s.mux, largestBody), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelWarn)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(s.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("listener %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	err := server.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-ended
	return err
}

// require lets only callers with the credential through. Both sides are hashed, so that the time tells nothing.
func (c Credential) require(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(c))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(given))
		if !found || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set(headerCode, refusal.Unauthorized)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"code":"unauthenticated","message":"this listener asks for the installation's service credential"}`))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Interceptors are what every Connect handler of the mesh does around its methods: it continues the caller's trace,
// learns for whom the call is made, survives panics, and lets errors out by Error.
func Interceptors(log *slog.Logger, tracer trace.Tracer) connect.Option {
	return connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (answer connect.AnyResponse, err error) {
			service, method := names(r.Spec().Procedure)
			ctx, span := tracer.Start(telemetry.Continue(carried(ctx, r.Header()), r.Header().Get("Traceparent")),
				service+"/"+method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
					attribute.String("rpc.system", "connect_rpc"), attribute.String("rpc.service", service),
					attribute.String("rpc.method", method)))
			defer span.End()
			defer func() {
				if p := recover(); p != nil {
					log.Error("a call panicked", "procedure", r.Spec().Procedure, "panic", p, "stack", string(debug.Stack()))
					answer, err = nil, Error(fmt.Errorf("panic: %v", p))
				}
			}()
			if answer, err = next(ctx, r); err == nil {
				return answer, nil
			}
			if _, refused := refusal.Of(err); !refused && ctx.Err() == nil {
				span.SetStatus(codes.Error, err.Error())
				log.Error("a call failed", "procedure", r.Spec().Procedure, "error", err)
			}
			return nil, Error(err)
		}
	}))
}

func names(procedure string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	return service, method
}

package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
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
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

const (
	maxBody    = 16 << 20 // bytes of a request
	stopWithin = 5 * time.Second
	callWithin = 30 * time.Second // deadline of calls whose caller sets none
)

// ServerOptions configure a Server.
type ServerOptions struct {
	Addr         string       // host:port
	PortVariable string       // name of the variable for the port, used in the error if the port is in use
	Listener     net.Listener // used instead of Addr; nil: Addr is used
	Credential   Credential
	// Health serves /health, /livez, /readyz and /metrics, which need no credential.
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

// NewServer opens the listener and returns a server, which serves once Run is called.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Credential == "" {
		return nil, errors.New("inner listener: no service credential is set " +
			"(SERVICE_SECRET, or JWT_SECRET from which it is derived)")
	}
	s := &Server{o: o, listener: o.Listener, mux: http.NewServeMux()}
	if s.listener == nil {
		var err error
		if s.listener, err = net.Listen("tcp", o.Addr); err != nil {
			return nil, fmt.Errorf("listen on %s: %w (is another instance running? %s chooses another port)",
				o.Addr, err, o.PortVariable)
		}
	}
	return s, nil
}

// Handle registers the handler of a path, such as that of a Connect service, for callers with the credential.
func (s *Server) Handle(path string, h http.Handler) { s.mux.Handle(path, h) }

// handler serves the paths of Health without a credential. All other paths, including unknown ones, require the
// credential.
func (s *Server) handler() http.Handler {
	inner := s.o.Credential.require(s.recoverPanics(http.MaxBytesHandler(s.mux, maxBody)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health", "/livez", "/readyz", "/metrics":
			if s.o.Health != nil {
				s.o.Health.ServeHTTP(w, r)
				return
			}
		}
		inner.ServeHTTP(w, r)
	})
}

// recoverPanics turns a panic outside of Connect's interceptors into the failure of one call.
func (s *Server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				_ = panicked(s.o.Log, r.URL.Path, p)
				answer(w, http.StatusInternalServerError, connect.CodeInternal, internal())
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// panicked logs a panic and returns it as an error. If a handler aborts a call by a panic with http.ErrAbortHandler,
// panicked logs nothing and panics again.
func panicked(log *slog.Logger, procedure string, p any) error {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	log.Error("a call panicked", "procedure", procedure, "panic", p, "stack", string(debug.Stack()))
	return fmt.Errorf("panic: %v", p)
}

// Addr returns the address of the listener.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, and then finishes calls in flight, for up to 5 s.
func (s *Server) Run(ctx context.Context) error {
	// The server keeps idle connections longer than clients do. So it does not close a connection that a client is
	// about to use, except when it stops.
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: callWithin,
		IdleTimeout: 2 * clientIdle, ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelWarn)}
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

// require passes on only requests with the credential. It compares hashes, so that the time of the comparison reveals
// nothing about the credential.
func (c Credential) require(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(c))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(given))
		if !found || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
			answer(w, http.StatusUnauthorized, connect.CodeUnauthenticated,
				refusal.New(refusal.Unauthorized, "this listener requires the installation's service credential"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// answer writes a refusal as an error response of the Connect protocol.
func answer(w http.ResponseWriter, status int, code connect.Code, r *refusal.Error) {
	body, _ := json.Marshal(map[string]string{"code": code.String(), "message": r.Text}) // cannot fail for texts
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(headerCode, r.Code)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// Interceptors returns the common options and interceptors of all Connect handlers of the mesh. They bound the size of
// a request, accept and send nothing compressed, continue the caller's trace, read the actor and the position, set a
// deadline if the caller has set none, refuse texts that cannot be stored and fields that do not have their declared
// shapes (see catalog.CheckShape), recover from panics, log internal errors, and convert errors with Error.
func Interceptors(log *slog.Logger, tracer trace.Tracer) connect.HandlerOption {
	return connect.WithHandlerOptions(connect.WithReadMaxBytes(maxBody),
		// Services are close to each other: compressing a response would cost more than sending it.
		connect.WithCompression("gzip", nil, nil),
		connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
				ctx, span := tracer.Start(
					telemetry.Continue(readHeaders(ctx, r.Header()), r.Header().Get("Traceparent")),
					spanName(r.Spec().Procedure), trace.WithSpanKind(trace.SpanKindServer),
					trace.WithAttributes(rpcAttributes(r.Spec().Procedure)...))
				defer span.End()
				if _, limited := ctx.Deadline(); !limited {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, callWithin)
					defer cancel()
				}
				given, err := callRecovering(ctx, r, next, log)
				if err == nil {
					return given, nil
				}
				_, refused := refusal.Of(err)
				if !refused && ctx.Err() != nil {
					err = ctx.Err() // the handler's error is a consequence of the end of ctx
				}
				out := Error(err)
				span.SetAttributes(attribute.String("rpc.connect_rpc.error_code", connect.CodeOf(out).String()))
				if !refused && connect.CodeOf(out) == connect.CodeInternal {
					// The text may be confidential, so it is only logged and left out of the trace span.
					span.SetStatus(codes.Error, "")
					log.Error("a call failed", "procedure", r.Spec().Procedure, "error", err,
						"trace", span.SpanContext().TraceID().String())
				}
				return nil, out
			}
		})))
}

func callRecovering(ctx context.Context, r connect.AnyRequest, next connect.UnaryFunc, log *slog.Logger) (
	given connect.AnyResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			given, err = nil, panicked(log, r.Spec().Procedure, p)
		}
	}()
	if m, is := r.Any().(proto.Message); is {
		if err := checkTexts(m.ProtoReflect(), ""); err != nil {
			return nil, err
		}
		if err := catalog.CheckShape(m); err != nil {
			return nil, err
		}
	}
	return next(ctx, r)
}

func names(procedure string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	return service, method
}

func spanName(procedure string) string { return strings.TrimPrefix(procedure, "/") }

func rpcAttributes(procedure string) []attribute.KeyValue {
	service, method := names(procedure)
	return []attribute.KeyValue{attribute.String("rpc.system", "connect_rpc"),
		attribute.String("rpc.service", service), attribute.String("rpc.method", method)}
}

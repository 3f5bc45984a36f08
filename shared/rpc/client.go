package rpc

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/telemetry"
)

// ErrUnreachable says that the service did not answer at all.
var ErrUnreachable = errors.New("service does not answer")

// NewClient makes the HTTP client with which services are called: with the credential, and with actor, position and
// trace of the request's context. It keeps connections and tries nothing twice.
func NewClient(c Credential, tracer trace.Tracer) *http.Client {
	return &http.Client{Transport: &transport{credential: c, tracer: tracer, next: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
	}}}
}

type transport struct {
	credential Credential
	tracer     trace.Tracer
	next       http.RoundTripper
}

// RoundTrip sends one request.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	service, method := names(r.URL.Path)
	ctx, span := t.tracer.Start(r.Context(), service+"/"+method, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("rpc.system", "connect_rpc"), attribute.String("rpc.service", service),
			attribute.String("rpc.method", method), attribute.String("server.address", r.URL.Host)))
	defer span.End()
	r = r.Clone(ctx)
	r.Header.Set("Authorization", "Bearer "+string(t.credential))
	if parent := telemetry.TraceParent(ctx); parent != "" {
		r.Header.Set("Traceparent", parent)
	}
	carry(ctx, r.Header)
	response, err := t.next.RoundTrip(r)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, r.URL.Host, err)
	}
	return response, nil
}

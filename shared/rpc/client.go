package rpc

import (
	"context"
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

// ErrUnreachable means that no response arrived, for example because the service does not run or has not responded in
// time. A call that its caller has canceled has another error.
var ErrUnreachable = errors.New("service does not answer")

const clientIdle = 90 * time.Second

// NewClient returns the HTTP client for calls to services. It sends the credential, and the actor, position and trace
// of the request's context. It keeps connections open, does not repeat a request that the service may have received,
// and does not follow redirects, which would send the credential to another address.
func NewClient(c Credential, tracer trace.Tracer) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &transport{credential: c, tracer: tracer, next: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 64, IdleConnTimeout: clientIdle, ResponseHeaderTimeout: callWithin,
			DisableCompression: true,
		}},
	}
}

type transport struct {
	credential Credential
	tracer     trace.Tracer
	next       http.RoundTripper
}

// RoundTrip sends one request.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, span := t.tracer.Start(r.Context(), spanName(r.URL.Path), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(append(rpcAttributes(r.URL.Path), attribute.String("server.address", r.URL.Host))...))
	defer span.End()
	r = r.Clone(ctx)
	r.Header.Set("Authorization", "Bearer "+string(t.credential))
	if parent := telemetry.TraceParent(ctx); parent != "" {
		r.Header.Set("Traceparent", parent)
	}
	setHeaders(ctx, r.Header)
	response, err := t.next.RoundTrip(r)
	switch {
	case err == nil:
		span.SetAttributes(attribute.Int("http.response.status_code", response.StatusCode))
		if code := response.Header.Get(headerCode); code != "" {
			span.SetAttributes(attribute.String("edumatrix.code", code))
		}
		if response.StatusCode >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, response.Status)
		}
		return response, nil
	case errors.Is(err, context.Canceled):
		return nil, err // the caller has canceled the call
	default:
		span.SetStatus(codes.Error, err.Error())
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, r.URL.Host, err)
	}
}

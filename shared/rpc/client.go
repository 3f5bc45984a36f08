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

// ErrUnreachable says that the service did not answer at all.
var ErrUnreachable = errors.New("service does not answer")

const clientIdle = 90 * time.Second

// NewClient makes the HTTP client with which services are called: with the credential, and with actor, position and
// trace of the request's context. It keeps connections, tries nothing twice, and follows nobody elsewhere: what answers
// with another address would be given the credential there.
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
	carry(ctx, r.Header)
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
		return nil, err // by the caller: it says nothing of the service
	default:
		span.SetStatus(codes.Error, err.Error())
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, r.URL.Host, err)
	}
}

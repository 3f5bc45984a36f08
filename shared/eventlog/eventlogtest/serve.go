package eventlogtest

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Serve serves queries until the test ends. It passes to the function newHandler the handler options that a service
// uses (see owner.Service.QueryOptions); newHandler must not add options of its own. Serve returns the HTTP client and
// the address that a Connect client needs.
func (l *Log) Serve(projections consistency.Projections,
	newHandler func(...connect.HandlerOption) (path string, handler http.Handler)) (client *http.Client, url string) {
	tracer := noop.NewTracerProvider().Tracer("")
	_, handler := newHandler(rpc.Interceptors(slog.New(slog.DiscardHandler), tracer),
		connect.WithInterceptors(consistency.Interceptor(l.Log, l.Catalog, projections)))
	server := httptest.NewServer(handler)
	l.t.Cleanup(server.Close)
	return rpc.NewClient("", tracer), server.URL
}

// Ask sends a query. If the answer is refusal.Unavailable, because a busy machine has not applied the newest events
// yet, Ask sends the query again, up to ten times in all.
func Ask[Q, A any](ctx context.Context, ask func(context.Context, *connect.Request[Q]) (*connect.Response[A], error),
	query *Q) (*A, error) {
	for try := 1; ; try++ {
		answer, err := ask(ctx, connect.NewRequest(query))
		if err == nil {
			return answer.Msg, nil
		}
		if refused, ok := rpc.Refusal(err); !ok || refused.Code != refusal.Unavailable || try == 10 {
			return nil, err
		}
	}
}

package health_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/health"
)

// A broker responds, but cannot store records, for example because its disk is full. /health must report the broker as
// unavailable until it can write again. In this test, the broker cannot write its probe file, because a folder has the
// name of the file.
func TestHealth_ReportsABrokerThatCannotWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broker, err := embedded.StartKafka(embedded.KafkaOptions{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(broker.Stop)
	h := health.New(health.OfStores(&backend.Stores{Kafka: backend.Kafka{Brokers: broker.Brokers()}}),
		slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })

	requireHealth := func(status int, body string) {
		t.Helper()
		var r *httptest.ResponseRecorder
		require.Eventually(t, func() bool {
			r = httptest.NewRecorder()
			h.Handler().ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/health", nil))
			return r.Code == status
		}, 20*time.Second, 20*time.Millisecond)
		require.Equal(t, body, r.Body.String())
	}
	const healthy = `{"status":"healthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":true}}`
	requireHealth(http.StatusOK, healthy)
	obstacle := filepath.Join(dir, "probe")
	full := t.TempDir() // gets a file, because os.Remove in the broker's check would delete an empty folder
	require.NoError(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	require.Eventually(t, func() bool { return os.Rename(full, obstacle) == nil }, 5*time.Second, time.Millisecond)
	requireHealth(http.StatusServiceUnavailable,
		`{"status":"unhealthy","services":{"redis":true,"kafka":false,"postgres":true,"socketio":true}}`)
	require.NoError(t, os.RemoveAll(obstacle))
	requireHealth(http.StatusOK, healthy)
}

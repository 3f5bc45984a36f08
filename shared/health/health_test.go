package health_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/health"
)

func get(t *testing.T, h *health.Health, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func eventually(t *testing.T, h *health.Health, status int, want string) {
	t.Helper()
	var got string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var code int
		if code, got = get(t, h, "/health"); code == status && got == want {
			return
		}
	}
	t.Fatalf("got %s, want %s", got, want)
}

func run(t *testing.T, checks ...health.Check) *health.Health {
	t.Helper()
	h := health.New(checks, slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = h.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return h
}

const healthy = `{"status":"healthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":true}}`

func TestHealth_TellsTheTruthWhileADependencyGoesAndComes(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	away.Store(true)
	h := run(t, health.Check{Name: "postgres", Check: func(context.Context) error {
		if away.Load() {
			return errors.New("away")
		}
		return nil
	}})
	eventually(t, h, 503, `{"status":"unhealthy","services":{"redis":true,"kafka":true,"postgres":false,"socketio":true}}`)
	away.Store(false)
	eventually(t, h, 200, healthy)
	if _, metrics := get(t, h, "/metrics"); !strings.Contains(metrics, `edumatrix_up{dependency="postgres"} 1`) {
		t.Error("metrics do not say that postgres is up")
	}
}

func TestHealth_ACheckThatHangsIsNoAnswer(t *testing.T) {
	t.Parallel()
	h := run(t, health.Check{Name: "redis", Check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	eventually(t, h, 503, `{"status":"unhealthy","services":{"redis":false,"kafka":true,"postgres":true,"socketio":true}}`)
}

func TestHealth_WorkThatWaitsIsNotHealthy(t *testing.T) {
	t.Parallel()
	h := run(t)
	eventually(t, h, 200, healthy)
	h.Waiting("kafka", errors.New("away"))
	eventually(t, h, 503, `{"status":"unhealthy","services":{"redis":true,"kafka":false,"postgres":true,"socketio":true}}`)
	h.Waiting("kafka", nil)
	h.Waiting("chat", errors.New("away"))
	eventually(t, h, 503, `{"status":"unhealthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":true}}`)
	h.Waiting("chat", nil)
	eventually(t, h, 200, healthy)
}

func TestReady_IsNotAlive(t *testing.T) {
	t.Parallel()
	h := run(t)
	if status, _ := get(t, h, "/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("ready before it was said: %d", status)
	}
	if status, _ := get(t, h, "/livez"); status != http.StatusOK {
		t.Errorf("not alive: %d", status)
	}
	h.SetReady(true)
	if status, _ := get(t, h, "/readyz"); status != http.StatusOK {
		t.Errorf("not ready: %d", status)
	}
}

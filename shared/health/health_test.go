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
	"testing/synctest"
	"time"

	"github.com/edumatrix/interlinked/shared/health"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func get(t *testing.T, h *health.Health, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// awaitHealth waits for a status and a text of /health.
func awaitHealth(t *testing.T, h *health.Health, status int, want string) {
	t.Helper()
	meshtest.Eventually(t, "/health is "+want, func() bool {
		code, got := get(t, h, "/health")
		return code == status && got == want
	})
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

func TestHealth_FollowsTheStateOfADependency(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	away.Store(true)
	h := run(t, health.Check{Name: "postgres", Check: func(context.Context) error {
		if away.Load() {
			return errors.New("away")
		}
		return nil
	}})
	awaitHealth(t, h, 503, `{"status":"unhealthy","services":{"redis":true,"kafka":true,"postgres":false,"socketio":true}}`)
	away.Store(false)
	awaitHealth(t, h, 200, healthy)
	if _, metrics := get(t, h, "/metrics"); !strings.Contains(metrics, `edumatrix_up{dependency="postgres"} 1`) {
		t.Error("the metrics do not report that postgres is up")
	}
}

func TestHealth_ACheckThatHangsCountsAsFailed(t *testing.T) {
	t.Parallel()
	h := run(t, health.Check{Name: "redis", Check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	awaitHealth(t, h, 503, `{"status":"unhealthy","services":{"redis":false,"kafka":true,"postgres":true,"socketio":true}}`)
}

func TestHealth_ReportsNothingOlderThanTwoSeconds(t *testing.T) {
	t.Parallel()
	const without = `{"status":"unhealthy","services":{"redis":false,"kafka":true,"postgres":true,"socketio":true}}`
	for name, hang := range map[string]func(ctx context.Context, end <-chan struct{}){
		"a check that keeps its deadline":   func(ctx context.Context, _ <-chan struct{}) { <-ctx.Done() },
		"a check that ignores its deadline": func(_ context.Context, end <-chan struct{}) { <-end },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var away atomic.Bool
				end := make(chan struct{})
				h := run(t, health.Check{Name: "redis", Check: func(ctx context.Context) error {
					if away.Load() {
						hang(ctx, end)
						return ctx.Err()
					}
					return nil
				}})
				synctest.Wait()
				if _, body := get(t, h, "/health"); body != healthy {
					t.Fatal(body)
				}
				time.Sleep(10*time.Second + 10*time.Millisecond)
				away.Store(true) // right after a check, so that the next check is the first one that can fail
				time.Sleep(2*time.Second + time.Millisecond)
				if status, body := get(t, h, "/health"); status != 503 || body != without {
					t.Errorf("%d %s", status, body)
				}
				away.Store(false)
				close(end)
				time.Sleep(2 * time.Second)
				if _, body := get(t, h, "/health"); body != healthy {
					t.Errorf("the dependency is available again, but the report is %s", body)
				}
			})
		})
	}
}

func TestHealth_ASlowCheckThatSucceedsIsHealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := run(t, health.Check{Name: "kafka", Check: func(context.Context) error {
			time.Sleep(900 * time.Millisecond)
			return nil
		}})
		time.Sleep(time.Second)
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if _, body := get(t, h, "/health"); body != healthy {
				t.Fatal(body)
			}
		}
	})
}

func TestHealth_BothChecksOfOneStoreHaveToSucceed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := run(t, health.Check{Name: "kafka", Check: func(context.Context) error { return errors.New("away") }},
			health.Check{Name: "kafka", Check: func(context.Context) error { return nil }})
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			if status, body := get(t, h, "/health"); status != 503 {
				t.Fatal(body)
			}
		}
	})
}

func TestHealth_IsUnhealthyWhileWorkWaits(t *testing.T) {
	t.Parallel()
	h := run(t)
	awaitHealth(t, h, 200, healthy)
	h.Waiting("kafka", errors.New("away"))
	awaitHealth(t, h, 503, `{"status":"unhealthy","services":{"redis":true,"kafka":false,"postgres":true,"socketio":true}}`)
	h.Waiting("kafka", nil)
	h.Waiting("chat", errors.New("away"))
	awaitHealth(t, h, 503, `{"status":"unhealthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":false}}`)
	h.Waiting("chat", nil)
	awaitHealth(t, h, 200, healthy)
}

func TestReady_DiffersFromAlive(t *testing.T) {
	t.Parallel()
	h := run(t)
	if status, _ := get(t, h, "/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("ready before SetReady: %d", status)
	}
	if status, _ := get(t, h, "/livez"); status != http.StatusOK {
		t.Errorf("not alive: %d", status)
	}
	h.SetReady(true)
	if status, _ := get(t, h, "/readyz"); status != http.StatusOK {
		t.Errorf("not ready: %d", status)
	}
}

func TestReady_IsFalseUntilTheProcessHasBeenHealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var there atomic.Bool
		h := run(t, health.Check{Name: "postgres", Check: func(context.Context) error {
			if !there.Load() {
				return errors.New("not yet")
			}
			return nil
		}})
		h.SetReady(true)
		time.Sleep(5 * time.Second)
		if status, _ := get(t, h, "/readyz"); status != http.StatusServiceUnavailable {
			t.Errorf("ready while /health reports a failure: %d", status)
		}
		there.Store(true)
		begun := time.Now()
		<-h.Began()
		if took := time.Since(begun); took > 100*time.Millisecond {
			t.Errorf("reported after %s", took)
		}
		for _, path := range []string{"/readyz", "/health"} {
			if status, body := get(t, h, path); status != http.StatusOK {
				t.Errorf("%s: %d %s", path, status, body)
			}
		}
		there.Store(false) // the dependency becomes unavailable again, which must not end readiness
		time.Sleep(5 * time.Second)
		if status, _ := get(t, h, "/readyz"); status != http.StatusOK {
			t.Errorf("not ready: %d", status)
		}
	})
}

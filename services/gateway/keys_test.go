package gateway

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// A gateway starts while the keys with which it checks tokens cannot be fetched. It must not become ready, even if all
// its stores are available, because it could not accept any client.
func TestGateway_IsNotReadyBeforeTheFirstKeys(t *testing.T) {
	t.Parallel()
	m := begin(t)
	var there atomic.Bool
	key, _, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !there.Load() {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","use":"sig","alg":"EdDSA","x":%q}]}`,
			base64.RawURLEncoding.EncodeToString(key))
	}))
	t.Cleanup(keys.Close)
	m.config.JWTSecret, m.config.JWKSURL = "", keys.URL
	m.config.JWTAudience, m.config.JWTIssuer = []string{"edu-matrix"}, "https://sign-in.school.example/"

	var set settings
	set.listener, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	set.metrics, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	tele, err := telemetry.Start(t.Context(), telemetry.Options{Service: "gateway"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tele.Stop(context.Background())) })
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, process.Env{Config: m.config, Stores: m.stores, Catalog: m.catalog, Log: slog.New(slog.DiscardHandler),
			Telemetry: tele, Ready: func() { close(ready) }}, set)
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})

	status := func(path string) int {
		r, err := http.Get("http://" + set.listener.Addr().String() + path)
		if err != nil {
			return 0
		}
		_ = r.Body.Close()
		return r.StatusCode
	}
	require.Eventually(t, func() bool { return status("/health") == http.StatusOK }, 20*time.Second, 20*time.Millisecond)
	require.Never(t, func() bool { return status("/readyz") == http.StatusOK }, 500*time.Millisecond, 20*time.Millisecond)
	there.Store(true)
	require.Eventually(t, func() bool { return status("/readyz") == http.StatusOK }, 20*time.Second, 20*time.Millisecond)
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Error("the gateway does not become ready")
	}
}

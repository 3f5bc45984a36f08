//go:build integration

package edumatrix

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// environmentOfUp returns environment variables for `edumatrix up` in a test: free ports, a new data directory, and a
// database.
func environmentOfUp(t *testing.T) map[string]string {
	t.Helper()
	env := map[string]string{"DATA_DIR": t.TempDir(), "PORT": fmt.Sprint(meshtest.FreePort(t)),
		"DATABASE_URL": meshtest.Postgres(t)}
	for _, owner := range []string{"PRESENCE", "CHAT", "FEED", "NOTIFICATION"} {
		env[owner+"_URL"] = fmt.Sprintf("http://127.0.0.1:%d", meshtest.FreePort(t))
	}
	return env
}

// readyWriter calls a function when `edumatrix up` writes that it is ready. The write blocks until the function
// returns.
type readyWriter struct{ ready func() }

func (w readyWriter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("is ready after")) {
		w.ready()
	}
	return len(p), nil
}

// TestUp_IsFoundAsSoonAsItIsReady checks that a script that waits for the ready line or for /readyz can run other
// subcommands at once.
func TestUp_IsFoundAsSoonAsItIsReady(t *testing.T) {
	t.Parallel()
	env := environmentOfUp(t)
	getenv := func(name string) string { return env[name] }
	ctx, stop := context.WithCancel(t.Context())
	found, ended := make(chan error, 1), make(chan error, 1)
	screen := readyWriter{func() { _, err := findMesh(getenv); found <- err }}
	go func() {
		ended <- up(ctx, Terminal{In: strings.NewReader(""), Out: screen, Err: &bytes.Buffer{}, Getenv: getenv}, nil)
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := findMesh(getenv); err == nil {
			t.Error("findMesh finds a mesh that has ended")
		}
	}()

	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if r, err := http.Get("http://127.0.0.1:" + env["PORT"] + "/readyz"); err == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the mesh is not ready")
		}
	}
	if _, err := findMesh(getenv); err != nil {
		t.Errorf("after /readyz: %v", err)
	}
	select {
	case err := <-found:
		if err != nil {
			t.Errorf("after the ready line: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the mesh did not print that it is ready")
	}
}

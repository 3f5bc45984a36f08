//go:build integration

package deployments_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startTime is how long a mesh may take to start, and to answer, on a busy machine.
const startTime = 3 * time.Minute

// mesh is a mesh in one process, with embedded stores.
type mesh struct {
	t       *testing.T
	program string
	env     []string
	url     string
	token   string
}

// buildMesh builds the program edumatrix of a tree, and chooses its ports and its folder.
func buildMesh(t *testing.T, d tree) *mesh {
	t.Helper()
	m := &mesh{t: t, program: d.path("bin/edumatrix")}
	d.run(t, ".", "go", "build", "-o", m.program, "./services/edumatrix/cmd/edumatrix")
	// The database server does not run as root, and has to get at its folder.
	data, err := os.MkdirTemp("", "edumatrix-guide-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	require.NoError(t, os.Chmod(data, 0o755))
	for _, inherited := range []string{"PATH", "HOME", "XDG_CACHE_HOME"} {
		if value, ok := os.LookupEnv(inherited); ok {
			m.env = append(m.env, inherited+"="+value)
		}
	}
	m.env = append(m.env, "DATA_DIR="+data, "JWT_SECRET="+strings.Repeat("secret", 6))
	for _, variable := range []string{"PORT=%d", "METRICS_PORT=%d", "CHAT_URL=http://127.0.0.1:%d", "FEED_URL=http://127.0.0.1:%d",
		"PRESENCE_URL=http://127.0.0.1:%d", "NOTIFICATION_URL=http://127.0.0.1:%d"} {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer free.Close() // the port is taken until all ports are chosen
		port := free.Addr().(*net.TCPAddr).Port
		if m.env = append(m.env, fmt.Sprintf(variable, port)); m.url == "" {
			m.url = fmt.Sprintf("http://127.0.0.1:%d", port)
		}
	}
	token := exec.Command(m.program, "token", "--user", "ann")
	token.Env = m.env
	out, err := token.Output()
	require.NoError(t, err)
	m.token = strings.TrimSpace(string(out))
	return m
}

// up starts the mesh, which runs until the test ends, and waits until it is healthy.
func (m *mesh) up() {
	m.t.Helper()
	up, logged := exec.Command(m.program, "up"), &bytes.Buffer{}
	up.Env, up.Stdout, up.Stderr = m.env, logged, logged
	require.NoError(m.t, up.Start())
	ended := make(chan error, 1)
	go func() { ended <- up.Wait() }()
	m.t.Cleanup(func() {
		_ = up.Process.Signal(syscall.SIGTERM) // it may have ended
		require.NoError(m.t, <-ended)
	})
	for end := time.Now().Add(startTime); ; {
		response, err := http.Get(m.url + "/health")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-ended:
			ended <- nil
			m.t.Fatalf("the mesh ended: %v\n%s", err, logged)
		case <-time.After(50 * time.Millisecond):
		}
		require.True(m.t, time.Now().Before(end), "the mesh does not become healthy")
	}
}

// ask sends a command or a query of ann, again if the machine is too busy to answer it, and returns the answer.
func (m *mesh) ask(name, data string) string {
	m.t.Helper()
	for end := time.Now().Add(startTime); ; {
		r, err := http.NewRequest(http.MethodPost, m.url+"/api/"+name, strings.NewReader(data))
		require.NoError(m.t, err)
		r.Header.Set("Authorization", "Bearer "+m.token)
		response, err := http.DefaultClient.Do(r)
		require.NoError(m.t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(m.t, err)
		require.NoError(m.t, response.Body.Close())
		if response.StatusCode == http.StatusOK {
			return string(body)
		}
		require.True(m.t, time.Now().Before(end) && (response.StatusCode == http.StatusAccepted ||
			response.StatusCode == http.StatusServiceUnavailable), "%s: %d %s", name, response.StatusCode, body)
	}
}

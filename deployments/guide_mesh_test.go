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

// startTime is the maximum time that a mesh may take to start, and to answer a request, on a busy machine.
const startTime = 3 * time.Minute

// mesh is a mesh in one process, with embedded stores.
type mesh struct {
	t       *testing.T
	program string
	env     []string
	url     string
	token   string
}

// startMesh builds the program edumatrix from the files of a tree, and runs it until the test ends. If another process
// takes a port before the mesh listens on it, startMesh starts the mesh again on other ports.
func startMesh(t *testing.T, d tree) *mesh {
	t.Helper()
	program := d.path("bin/edumatrix")
	d.run(t, ".", "go", "build", "-o", program, "./services/edumatrix/cmd/edumatrix")
	for try := 1; ; try++ {
		m := newMesh(t, program)
		logged, ok := m.up()
		if ok {
			return m
		}
		require.True(t, try < 10 && strings.Contains(logged, "address already in use"), "the mesh ended: %s", logged)
	}
}

// newMesh returns a mesh that is not started yet, with free ports and a new data folder.
func newMesh(t *testing.T, program string) *mesh {
	t.Helper()
	m := &mesh{t: t, program: program}
	// The database server may run under another account, and must be able to access the folder.
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
		defer free.Close() // hold this port until the others are chosen, so that all ports differ
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

// up starts the mesh, which runs until the test ends, and waits until it is healthy. If the process ends first, up
// returns its output and false.
func (m *mesh) up() (logged string, ok bool) {
	m.t.Helper()
	up, output := exec.Command(m.program, "up"), &bytes.Buffer{}
	up.Env, up.Stdout, up.Stderr = m.env, output, output
	require.NoError(m.t, up.Start())
	ended := make(chan error, 1)
	go func() { ended <- up.Wait() }()
	m.t.Cleanup(func() {
		_ = up.Process.Signal(syscall.SIGTERM) // fails only if the process has ended
		require.NoError(m.t, <-ended)
	})
	client := http.Client{Timeout: 5 * time.Second} // another process may have the port and never answer
	for end := time.Now().Add(startTime); ; {
		response, err := client.Get(m.url + "/health")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return "", true
			}
		}
		select {
		case <-ended:
			ended <- nil // for the cleanup function above, which also receives from this channel
			return output.String(), false
		case <-time.After(50 * time.Millisecond):
		}
		require.True(m.t, time.Now().Before(end), "the mesh has not become healthy")
	}
}

// ask sends a command or a query of the user ann, and returns the answer. It sends the request again while a command
// is queued or the service is unavailable, because the machine may be busy.
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

//go:build integration

// Package e2e runs the programs of the mesh in separate processes, as users do, and tests them from outside: through
// sockets, HTTP and exit statuses. The same suite runs against `edumatrix up` with its embedded stores, and against
// separate services with two gateways on real Kafka, Redis and PostgreSQL.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

const secret = "a secret that only tests know, long enough"

var binaries meshrun.Binaries

func TestMain(m *testing.M) {
	if conversation := os.Getenv("E2E_HOSTILE"); conversation != "" {
		hostile(conversation) // see BenchmarkHostile
		return
	}
	var err error
	if binaries, err = meshrun.Build(meshrun.Programs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	binaries.Remove()
	os.Exit(status)
}

// mesh is a running installation.
type mesh struct {
	gateways  []string // base URLs
	metrics   []string // base URLs of the gateways' metrics, in the order of gateways
	processes []*meshrun.Process
	database  string
	protobuf  bool // whether clients use the binary subprotocol
}

// embedded starts `edumatrix up`. Only its ports, its data folder, JWT_SECRET and the extra settings are set.
func embedded(t testing.TB, extra ...string) *mesh {
	t.Helper()
	return embeddedOf(t, binaries, extra...)
}

func embeddedOf(t testing.TB, bin meshrun.Binaries, extra ...string) *mesh {
	t.Helper()
	port, metrics := meshtest.FreePort(t), strconv.Itoa(meshtest.FreePort(t))
	up := bin.Process("edumatrix", []string{"up"}, append([]string{
		"DATA_DIR=" + dataDir(t), "JWT_SECRET=" + secret, "PORT=" + strconv.Itoa(port),
		"METRICS_PORT=" + metrics,
	}, append(peers(t), extra...)...))
	m := &mesh{gateways: []string{fmt.Sprintf("http://127.0.0.1:%d", port)}, processes: []*meshrun.Process{up},
		metrics: []string{"http://127.0.0.1:" + metrics}}
	m.run(t)
	return m
}

// dataDir returns a folder that an unprivileged database server can access even if the test runs as root.
func dataDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "edumatrix-data-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func peers(t testing.TB) (env []string) {
	t.Helper()
	for _, peer := range config.Peers() {
		env = append(env, fmt.Sprintf("%s_URL=http://127.0.0.1:%d", strings.ToUpper(peer), meshtest.FreePort(t)))
	}
	return env
}

// separate starts one process for each owner, and two gateways, on real stores.
func separate(t testing.TB, extra ...string) *mesh {
	t.Helper()
	kafka, redis := meshtest.Kafka(t), meshtest.Redis(t)
	return separateOn(t, meshtest.Postgres(t), redisURL(redis.Host, redis.Port, redis.Password, redis.URL),
		strings.Join(kafka.Brokers, ","), append(extra, "TOPIC_PREFIX="+kafka.TopicPrefix)...)
}

func redisURL(host string, port int, password, url string) string {
	if url != "" {
		return url
	}
	if password != "" {
		password = ":" + password + "@"
	}
	return fmt.Sprintf("redis://%s%s:%d/0", password, host, port)
}

func separateOn(t testing.TB, database, redis, brokers string, extra ...string) *mesh {
	t.Helper()
	return separateOf(t, binaries, database, redis, brokers, extra...)
}

func separateOf(t testing.TB, bin meshrun.Binaries, database, redis, brokers string, extra ...string) *mesh {
	t.Helper()
	addresses := peers(t)
	env := append([]string{"DATABASE_URL=" + database, "REDIS_URL=" + redis, "KAFKA_BROKERS=" + brokers,
		"JWT_SECRET=" + secret, "POSTGRES_POOL_MAX=10"}, append(addresses, extra...)...)
	m := &mesh{database: database}
	for _, address := range addresses {
		name, url, _ := strings.Cut(address, "_URL=")
		m.processes = append(m.processes, bin.Process(strings.ToLower(name), nil,
			append(slices.Clone(env), "PORT="+url[strings.LastIndex(url, ":")+1:])))
	}
	for range 2 {
		port, metrics := strconv.Itoa(meshtest.FreePort(t)), strconv.Itoa(meshtest.FreePort(t))
		m.gateways = append(m.gateways, "http://127.0.0.1:"+port)
		m.metrics = append(m.metrics, "http://127.0.0.1:"+metrics)
		m.processes = append(m.processes, bin.Process("gateway", nil, append(slices.Clone(env), "PORT="+port, "METRICS_PORT="+metrics)))
	}
	m.run(t)
	return m
}

func (m *mesh) run(t testing.TB) {
	t.Helper()
	for _, p := range m.processes {
		p.Start(t)
	}
	t.Cleanup(func() {
		for _, p := range slices.Backward(m.processes) {
			if p.Running() {
				p.Stop(t)
			}
			if t.Failed() {
				t.Logf("output of %s:\n%s", p.Name, p.Tail())
			}
		}
	})
	m.ready(t)
}

// ready waits until every gateway accepts clients. It fails the test as soon as a process has ended, or after 120 s.
func (m *mesh) ready(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(120 * time.Second)
	for _, gateway := range m.gateways {
		for {
			if r, err := http.Get(gateway + "/readyz"); err == nil {
				_ = r.Body.Close()
				if r.StatusCode == http.StatusOK {
					break
				}
			}
			for _, p := range m.processes {
				if !p.Running() {
					t.Fatalf("%s ended:\n%s", p.Name, p.Tail())
				}
			}
			if time.Now().After(deadline) {
				for _, p := range m.processes {
					t.Logf("output of %s:\n%s", p.Name, p.Tail())
				}
				t.Fatalf("%s is not ready", gateway)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (m *mesh) socket(gateway int) string {
	return "ws" + strings.TrimPrefix(m.gateways[gateway%len(m.gateways)], "http") + "/ws"
}

func mint(t testing.TB, user string, life time.Duration) string {
	t.Helper()
	token, err := auth.Mint(secret, auth.User{ID: user, Name: user}, life)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// post calls the HTTP API and returns the status and the body.
func (m *mesh) post(t testing.TB, user, path string, body any) (int, map[string]any) {
	t.Helper()
	encoded, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.gateways[0]+path, bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if user != "" {
		r.Header.Set("Authorization", "Bearer "+mint(t, user, time.Hour))
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, _ := io.ReadAll(response.Body)
	answer := map[string]any{}
	_ = json.Unmarshal(raw, &answer)
	return response.StatusCode, answer
}

func get(t testing.TB, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return string(body)
}

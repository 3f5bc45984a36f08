package meshtest

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

// lifecycle contains the operations on a server that a test started for itself. A test must call these operations in
// its own goroutine, because a failure ends the test.
type lifecycle struct {
	t   testing.TB
	own interface {
		Start(ctx context.Context) error
		Stop() error
		Kill() error
		Freeze() error
		Thaw() error
		PID() int
	}
}

func (l lifecycle) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// Start starts the server again, on the same data and port, and returns once it answers.
func (l lifecycle) Start() {
	l.t.Helper()
	l.must(l.own.Start(context.Background()))
}

// Stop shuts the server down and keeps its data.
func (l lifecycle) Stop() {
	l.t.Helper()
	l.must(l.own.Stop())
}

// Kill ends the server without a warning (SIGKILL) and keeps its data.
func (l lifecycle) Kill() {
	l.t.Helper()
	l.must(l.own.Kill())
}

// Freeze suspends the server (SIGSTOP) with its connections open.
func (l lifecycle) Freeze() {
	l.t.Helper()
	l.must(l.own.Freeze())
}

// Thaw resumes the frozen server.
func (l lifecycle) Thaw() {
	l.t.Helper()
	l.must(l.own.Thaw())
}

// PID returns the server's process id.
func (l lifecycle) PID() int { return l.own.PID() }

// removable is a server whose data can be deleted.
type removable interface{ Remove() error }

func removeAfter(t testing.TB, r removable) {
	t.Cleanup(func() {
		if err := r.Remove(); err != nil {
			t.Errorf("stop a server of the test: %v", err)
		}
	})
}

// log returns a logger for slow operations, which writes to the test's output.
func log(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// KafkaServer is a real broker that belongs to one test.
type KafkaServer struct {
	lifecycle
	kafka *server.Kafka
}

// NewKafkaServer starts a broker on empty data, which takes some seconds.
func NewKafkaServer(t testing.TB) *KafkaServer { return NewKafkaServerBehind(t, 0) }

// NewKafkaServerBehind starts a broker that directs its clients to a port of loopback where a proxy of the test
// listens (0: to the broker's own port). Settings and Addr return the broker's own address.
func NewKafkaServerBehind(t testing.TB, proxy int) *KafkaServer {
	t.Helper()
	k, err := server.StartKafka(t.Context(), log(t), proxy)
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, k)
	return &KafkaServer{lifecycle{t, k}, k}
}

// Settings returns the address of the broker.
func (k *KafkaServer) Settings() backend.Kafka { return k.kafka.Settings() }

// Addr returns the broker's host and port.
func (k *KafkaServer) Addr() string { return k.kafka.Settings().Brokers[0] }

// RedisServer is a real Redis that belongs to one test. It keeps every acknowledged write across a restart.
type RedisServer struct {
	lifecycle
	redis *server.Redis
}

// NewRedisServer starts a server on empty data.
func NewRedisServer(t testing.TB) *RedisServer {
	t.Helper()
	r, err := server.StartRedis(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, r)
	return &RedisServer{lifecycle{t, r}, r}
}

// Settings returns the address of the server.
func (r *RedisServer) Settings() backend.Redis { return r.redis.Settings() }

// Addr returns the server's host and port.
func (r *RedisServer) Addr() string { return r.redis.Settings().Where() }

// Snapshot copies the data of the running server, for Rewind.
func (r *RedisServer) Snapshot() {
	r.t.Helper()
	r.must(r.redis.Snapshot())
}

// Rewind resets the stopped server to its snapshot.
func (r *RedisServer) Rewind() {
	r.t.Helper()
	r.must(r.redis.Rewind())
}

// PostgresServer is a real PostgreSQL that belongs to one test. Freeze and Kill affect all of its processes.
type PostgresServer struct {
	lifecycle
	postgres *server.Postgres
}

// NewPostgresServer starts a server on empty data.
func NewPostgresServer(t testing.TB) *PostgresServer {
	t.Helper()
	return NewPostgresServerWith(t, 0, nil)
}

// NewPostgresServerWith starts a server on empty data, with a cache of a given size in bytes (0: the default) and with
// PostgreSQL settings.
func NewPostgresServerWith(t testing.TB, cache int64, settings map[string]string) *PostgresServer {
	t.Helper()
	p, err := server.StartPostgresWith(t.Context(), cache, settings, log(t))
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, p)
	return &PostgresServer{lifecycle{t, p}, p}
}

// URL returns the URL of the server's database.
func (p *PostgresServer) URL() string { return p.postgres.URL() }

// Database returns the URL of a fresh database on the server. The database is deleted when the test or benchmark ends.
func (p *PostgresServer) Database(t testing.TB) string {
	t.Helper()
	return freshDatabase(t, p.URL())
}

// Addr returns the server's host and port.
func (p *PostgresServer) Addr() string { return fmt.Sprintf("127.0.0.1:%d", p.postgres.Port()) }

// Jaeger starts a real server, which has no traces yet, for one test. It returns the address that receives spans and
// the address of the query API. The first call on a machine builds the server, which takes minutes.
func Jaeger(t testing.TB) (otlpEndpoint, queryURL string) {
	t.Helper()
	j, err := server.StartJaeger(t.Context(), log(t))
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, j)
	return j.OTLP(), j.Query()
}

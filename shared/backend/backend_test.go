package backend_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

var quick = map[string]string{"fsync": "off", "full_page_writes": "off"}

// closedPort returns a port on which nothing listens.
func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().(*net.TCPAddr).Port
}

func brief(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func startPostgres(t *testing.T) *embedded.Postgres {
	t.Helper()
	p, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Dir: t.TempDir(), Password: "s3cret/word",
		Settings: quick})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Stop()) })
	return p
}

func startKafka(t *testing.T) backend.Kafka {
	t.Helper()
	k, err := embedded.StartKafka(embedded.KafkaOptions{})
	require.NoError(t, err)
	t.Cleanup(k.Stop)
	return backend.Kafka{Brokers: k.Brokers(), ClientID: "test"}
}

func declared(t *testing.T) []catalog.Topic {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	return c.Topics("")
}

func TestPostgres_RemovesTheSchemaSuffixAndKeepsTheRest(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	pool, err := backend.Postgres{URL: p.URL() + "&application_name=kept&schema=public&connection_limit=5&pgbouncer=true"}.Open(brief(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	var name, secure string
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT current_setting('application_name')").Scan(&name))
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()").
		Scan(&secure))
	require.Equal(t, "kept", name)
	require.Equal(t, "false", secure)
	require.EqualValues(t, 20, pool.Config().MaxConns)
	require.Equal(t, 30*time.Second, pool.Config().MaxConnIdleTime)
	require.Equal(t, 2*time.Second, pool.Config().ConnConfig.ConnectTimeout)
}

func TestPostgres_RetiresAConnectionAfter7500Uses(t *testing.T) {
	t.Parallel()
	pool, err := backend.Postgres{URL: startPostgres(t).URL(), PoolMax: 1}.Open(brief(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	pid := func() (n uint32) {
		c, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		defer c.Release()
		return c.Conn().PgConn().PID()
	}
	first := pid()   // the second use; the first one was the ping of Open
	for range 7497 { // these are the uses 3 to 7,499
		c, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		c.Release()
	}
	require.Equal(t, first, pid(), "the 7,500th use")
	require.NotEqual(t, first, pid())
}

func TestPostgres_ErrorsContainTheAddressAndAdvice(t *testing.T) {
	t.Parallel()
	port := closedPort(t)
	url := fmt.Sprintf("postgresql://u:hidden@127.0.0.1:%d/db?schema=public", port)
	_, err := backend.Postgres{URL: url}.Open(brief(t))
	require.ErrorContains(t, err, fmt.Sprintf("Postgres at 127.0.0.1:%d/db: ", port))
	require.ErrorContains(t, err, "connection refused")
	require.ErrorContains(t, err, "DATABASE_URL")
	require.NotContains(t, err.Error(), "hidden")

	_, err = backend.Postgres{URL: "postgresql://edu:Hunter2@TopSecret@127.0.0.1:5999/db"}.Open(brief(t))
	require.ErrorContains(t, err, "DATABASE_URL: an @ in its user or password")
	require.NotContains(t, err.Error(), "TopSecret")
	_, err = backend.Postgres{URL: "localhost:5432"}.Open(brief(t))
	require.ErrorContains(t, err, "DATABASE_URL: it has to look like")
	_, err = backend.Postgres{URL: "postgresql://u:hidden@127.0.0.1/db?sslmode=perhaps"}.Open(brief(t))
	require.ErrorContains(t, err, "sslmode")
	require.NotContains(t, err.Error(), "hidden")
}

func TestRedis_ErrorsContainTheAddressAndAdviceAfterThreeRetries(t *testing.T) {
	t.Parallel()
	port := closedPort(t)
	begun := time.Now()
	_, err := backend.Redis{Host: "127.0.0.1", Port: port, Password: "hidden"}.Open(brief(t))
	require.ErrorContains(t, err, fmt.Sprintf("Redis at 127.0.0.1:%d: ", port))
	require.ErrorContains(t, err, "connection refused")
	require.ErrorContains(t, err, "REDIS_HOST")
	require.NotContains(t, err.Error(), "hidden")
	require.GreaterOrEqual(t, time.Since(begun), 300*time.Millisecond)

	_, err = backend.Redis{URL: "http://:hidden@x"}.Open(brief(t))
	require.ErrorContains(t, err, "REDIS_URL: it has to look like")
	require.NotContains(t, err.Error(), "hidden")
}

// answerRedis listens at an address and answers every connection with the Redis error "reached", which shows that a
// client reached this address. It returns the address, with the chosen port if the given port is 0.
func answerRedis(t *testing.T, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil && strings.Contains(address, "::1") {
		t.Skip("this machine has no IPv6")
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("-ERR reached\r\n-ERR reached\r\n-ERR reached\r\n"))
		}
	}()
	return l.Addr().String()
}

func TestRedis_ReachesASocketAndAnIPv6Address(t *testing.T) {
	t.Parallel()
	t.Run("socket", func(t *testing.T) {
		t.Parallel()
		_, err := backend.Redis{URL: "unix://" + answerRedis(t, "unix", filepath.Join(t.TempDir(), "s"))}.Open(brief(t))
		require.ErrorContains(t, err, "ERR reached")
	})
	t.Run("IPv6", func(t *testing.T) {
		t.Parallel()
		_, err := backend.Redis{URL: "redis://" + answerRedis(t, "tcp6", "[::1]:0") + "/0"}.Open(brief(t))
		require.ErrorContains(t, err, "ERR reached")
	})
}

func TestKafka_ErrorsContainTheAddressAndAdvice(t *testing.T) {
	t.Parallel()
	address := fmt.Sprintf("127.0.0.1:%d", closedPort(t))
	k := backend.Kafka{Brokers: []string{address}}
	_, ensure := k.EnsureTopics(brief(t), declared(t))
	for _, err := range []error{k.Check(brief(t)), ensure} {
		require.ErrorContains(t, err, "Kafka at "+address)
		require.ErrorContains(t, err, "KAFKA_BROKERS")
	}
	require.NoError(t, startKafka(t).Check(brief(t)))
	require.ErrorContains(t, backend.Kafka{}.Check(brief(t)), "no broker is named")
}

func TestKafka_FindsTheBrokerThatAnswers(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	k.Brokers = append([]string{fmt.Sprintf("127.0.0.1:%d", closedPort(t))}, k.Brokers...)
	require.NoError(t, k.Check(brief(t)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, k.Check(ctx), context.Canceled)
}

func TestEnsureTopics_CreatesMissingTopicsAndReportsDifferences(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	k.TopicPrefix = "north."
	differences, err := k.EnsureTopics(brief(t), declared(t))
	require.NoError(t, err)
	require.Empty(t, differences)
	differences, err = k.EnsureTopics(brief(t), declared(t))
	require.NoError(t, err)
	require.Empty(t, differences, "nothing is left to create")

	differences, err = k.EnsureTopics(brief(t), []catalog.Topic{
		{Name: "chat-events", Partitions: 6, Retention: time.Hour}, {Name: "another", Partitions: 2, Retention: time.Hour},
	})
	require.NoError(t, err)
	require.Equal(t, []string{
		"topic north.chat-events has 3 partitions, declared are 6",
		"topic north.chat-events has retention.ms=2592000000, declared is 3600000",
	}, differences)
	differences, err = k.EnsureTopics(brief(t), declared(t))
	require.NoError(t, err)
	require.Empty(t, differences, "no setting was changed")
}

func TestStores_AreLoggedWithoutTheirPasswords(t *testing.T) {
	t.Parallel()
	p := backend.Postgres{URL: "postgres://u:hidden@h/db"}
	r := backend.Redis{URL: "redis://:hidden@h:1/0"}
	parts := backend.Redis{Password: "hidden"}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "p", p, "r", r, "parts", parts)
	for _, text := range []string{fmt.Sprint(p, r, parts), fmt.Sprintf("%+v %#v %+v %#v", p, p, r, r), logged.String()} {
		require.NotContains(t, text, "hidden")
		require.Contains(t, text, "h:5432/db")
	}
}

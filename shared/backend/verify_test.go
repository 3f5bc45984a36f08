package backend_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

func startRedis(t *testing.T) backend.Redis {
	t.Helper()
	r, err := embedded.StartRedis(embedded.RedisOptions{Password: "s3cret"})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	return backend.Redis{URL: r.URL()}
}

func printed(t *testing.T, results []backend.Result) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, backend.Print(&b, results))
	return b.String()
}

func TestVerify_PassesOnCorrectStores(t *testing.T) {
	t.Parallel()
	v := backend.Verify{Postgres: backend.Postgres{URL: startPostgres(t).URL()}, Redis: startRedis(t),
		Kafka: startKafka(t), Topics: declared(t)}
	results := v.Run(t.Context())
	require.False(t, backend.Passed(results), "the topics do not exist yet:\n%s", printed(t, results))

	_, err := v.Kafka.EnsureTopics(brief(t), v.Topics)
	require.NoError(t, err)
	results = v.Run(t.Context())
	table := printed(t, results)
	require.True(t, backend.Passed(results), table)
	require.Contains(t, table, "9 checks: 9 ok, 0 with a warning, 0 failed")
	require.Contains(t, table, "as declared: partitions, retention")
	require.NotContains(t, table, "s3cret")

	differences, err := v.Kafka.EnsureTopics(brief(t), append(v.Topics, catalog.Topic{Name: "x", Partitions: 1}))
	require.NoError(t, err)
	require.Empty(t, differences)
}

func TestVerify_ShowsEveryRowWhenStoresAreUnavailable(t *testing.T) {
	t.Parallel()
	v := backend.Verify{
		Postgres: backend.Postgres{URL: fmt.Sprintf("postgres://u:s3cret@127.0.0.1:%d/db", closedPort(t))},
		Redis:    backend.Redis{Host: "127.0.0.1", Port: closedPort(t), Password: "s3cret"},
		Kafka:    backend.Kafka{Brokers: []string{fmt.Sprintf("127.0.0.1:%d", closedPort(t))}},
		Topics:   declared(t),
	}
	results := v.Run(t.Context())
	table := printed(t, results)
	require.False(t, backend.Passed(results))
	require.Contains(t, table, "9 checks: 0 ok, 0 with a warning, 9 failed")
	require.Equal(t, 11, strings.Count(table, "\n"))
	require.NotContains(t, table, "s3cret")
}

func TestVerify_ListsTheWrongTopics(t *testing.T) {
	t.Parallel()
	k := startKafka(t)
	_, err := k.EnsureTopics(brief(t), []catalog.Topic{{Name: "chat-events", Partitions: 1, Retention: time.Hour}})
	require.NoError(t, err)
	results := backend.Verify{Postgres: backend.Postgres{URL: startPostgres(t).URL()}, Redis: startRedis(t), Kafka: k,
		Topics: []catalog.Topic{
			{Name: "chat-events", Partitions: 3, Retention: 2 * time.Hour}, {Name: "gone", Partitions: 1}}}.Run(t.Context())
	require.False(t, backend.Passed(results))
	table := printed(t, results)
	for _, said := range []string{"topic chat-events has 1 partitions, declared are 3",
		"topic chat-events has retention.ms=3600000, declared is 7200000", "missing, to be created at the first start", "gone",
		"9 checks: 8 ok, 0 with a warning, 1 failed"} {
		require.Contains(t, table, said)
	}
}

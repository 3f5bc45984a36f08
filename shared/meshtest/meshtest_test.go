//go:build integration

package meshtest_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func brief(t *testing.T, within time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

func createTopic(t *testing.T, k backend.Kafka, name string) {
	t.Helper()
	_, err := k.EnsureTopics(t.Context(), []catalog.Topic{{Name: name, Partitions: 1, Retention: time.Hour}})
	require.NoError(t, err)
}

func topics(t *testing.T, k backend.Kafka) kadm.TopicDetails {
	t.Helper()
	all, err := meshtest.KafkaAdmin(t, k).ListTopics(t.Context())
	require.NoError(t, err)
	return all
}

func TestKafka_DeletesOnlyItsOwnTopics(t *testing.T) {
	t.Parallel()
	for _, kafka := range []func(testing.TB) backend.Kafka{meshtest.Kafka, meshtest.EmbeddedKafka} {
		mine := kafka(t)
		createTopic(t, mine, "mine")
		require.Contains(t, topics(t, mine), mine.TopicPrefix+"mine")
	}
	mine := meshtest.Kafka(t)
	createTopic(t, mine, "mine")
	var theirs backend.Kafka
	t.Run("another test", func(t *testing.T) {
		theirs = meshtest.Kafka(t)
		require.NotEqual(t, mine.TopicPrefix, theirs.TopicPrefix)
		createTopic(t, theirs, "theirs")
	})
	left := topics(t, mine)
	require.Contains(t, left, mine.TopicPrefix+"mine")
	require.NotContains(t, left, theirs.TopicPrefix+"theirs")
}

func TestPostgres_IsAFreshDatabaseForEachTest(t *testing.T) {
	t.Parallel()
	var gone string
	for range 2 {
		t.Run("a test", func(t *testing.T) {
			gone = meshtest.Postgres(t)
			pool, err := backend.Postgres{URL: gone}.Open(t.Context())
			require.NoError(t, err)
			_, err = pool.Exec(t.Context(), "CREATE TABLE things (id int)")
			require.NoError(t, err)
			var synced string
			require.NoError(t, pool.QueryRow(t.Context(), "SHOW fsync").Scan(&synced))
			require.Equal(t, "on", synced)
			// Cleanups run in reverse order, so the pool is closed before the database is deleted.
			t.Cleanup(pool.Close)
		})
	}
	_, err := backend.Postgres{URL: gone}.Open(brief(t, 5*time.Second))
	require.ErrorContains(t, err, "does not exist")
}

func TestRedis_IsEmptyForEachTest(t *testing.T) {
	t.Parallel()
	for _, redis := range []func(testing.TB) backend.Redis{meshtest.Redis, meshtest.EmbeddedRedis} {
		for range 2 {
			client, err := redis(t).Open(t.Context())
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, client.Close()) })
			set, err := client.SetNX(t.Context(), "things", 1, 0).Result()
			require.NoError(t, err)
			require.True(t, set)
		}
	}
}

// TestRedis_LeasesADatabaseOfANamedServer is not parallel, because it changes the environment.
func TestRedis_LeasesADatabaseOfANamedServer(t *testing.T) {
	own := meshtest.NewRedisServer(t).Settings()
	named := "redis://:" + own.Password + "@" + own.Where() + "/0"
	t.Setenv("MESHTEST_REDIS_URL", "")
	t.Setenv("REDIS_URL", named)
	leased := map[string]bool{}
	t.Run("together", func(t *testing.T) {
		for range 15 {
			r := meshtest.Redis(t)
			require.False(t, leased[r.URL], "two tests have %s", r)
			leased[r.URL] = true
			client, err := r.Open(t.Context())
			require.NoError(t, err)
			require.NoError(t, client.Set(t.Context(), "things", 1, 0).Err())
			require.NoError(t, client.Close())
		}
	})
	client, err := meshtest.Redis(t).Open(t.Context())
	require.NoError(t, err)
	require.Zero(t, client.Exists(t.Context(), "things").Val(), "a key of the previous test")
	require.NoError(t, client.Close())
}

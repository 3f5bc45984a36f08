// Package meshtest provides servers for tests: real servers (Apache Kafka, Redis, PostgreSQL, Jaeger) and the
// embedded servers that `make run` uses. Tests that need real servers have the build tag integration.
//
// Kafka and PostgreSQL are shared: `make test` starts one of each for the whole run. A test process that was started
// without `make test` starts its own servers at the first call of the function Kafka or Postgres. Every call of Kafka
// returns a new topic prefix, every call of Postgres a new database, and every call of Redis a new server, so that
// tests can run in parallel. Shared servers must not be stopped: a test that stops a store starts its own with
// NewKafkaServer, NewRedisServer or NewPostgresServer.
//
// If KAFKA_BROKERS, REDIS_URL or DATABASE_URL is set, the function for that store uses the server that the variable
// names instead. If a server cannot be started, the test fails.
package meshtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

// cleanupTime is how long it may take to create a test's database, and to delete or empty it after the test.
const cleanupTime = 30 * time.Second

// FreePort returns a free port of loopback.
func FreePort(t testing.TB) int {
	t.Helper()
	port, err := server.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// unique returns a name that no other test has, in any process.
func unique() string { return "t" + strings.ToLower(rand.Text())[:12] }

// Kafka returns a real broker, with a topic prefix for one test. Topics with the prefix are deleted after the test.
func Kafka(t testing.TB) backend.Kafka {
	t.Helper()
	k := backend.Kafka{Brokers: strings.Split(sharedServer(t, "kafka", server.KafkaVariable), ","),
		ClientID: "meshtest", TopicPrefix: unique() + "."}
	t.Cleanup(func() {
		if err := DeleteTopics(context.Background(), k); err != nil {
			t.Errorf("delete the test's topics: %v", err)
		}
	})
	return k
}

// KafkaAdmin returns a client for reading and changing topics and groups.
func KafkaAdmin(t testing.TB, k backend.Kafka) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(k.Options()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// GrowTopic adds partitions to a topic until it has the given number, and waits until the broker serves them.
func GrowTopic(t testing.TB, k backend.Kafka, topic string, partitions int) {
	t.Helper()
	admin, name := KafkaAdmin(t, k), k.Topic(topic)
	grown, err := admin.UpdatePartitions(t.Context(), partitions, name)
	if err == nil {
		err = grown.Error()
	}
	if err != nil {
		t.Fatalf("give %s %d partitions: %v", name, partitions, err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		found, err := admin.ListEndOffsets(t.Context(), name)
		if err == nil && found.Error() == nil && len(found[name]) == partitions {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not get its %d partitions: it has %d, %v", name, partitions, len(found[name]), err)
		}
	}
}

// DeleteRecords deletes all records of a topic, as if they were older than the topic's retention.
func DeleteRecords(t testing.TB, k backend.Kafka, topic string) {
	t.Helper()
	admin := KafkaAdmin(t, k)
	ends, err := admin.ListEndOffsets(t.Context(), k.Topic(topic))
	if err == nil {
		err = ends.Error()
	}
	if err == nil {
		var deleted kadm.DeleteRecordsResponses
		if deleted, err = admin.DeleteRecords(t.Context(), ends.Offsets()); err == nil {
			err = deleted.Error()
		}
	}
	if err != nil {
		t.Fatalf("delete the records of %s: %v", topic, err)
	}
}

// DeleteTopics deletes the topics with the prefix k.TopicPrefix, because the broker keeps files open for every
// partition.
func DeleteTopics(ctx context.Context, k backend.Kafka) error {
	client, err := kgo.NewClient(k.Options()...)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	var own []string
	for name := range topics {
		if strings.HasPrefix(name, k.TopicPrefix) {
			own = append(own, name)
		}
	}
	if len(own) == 0 {
		return nil
	}
	deleted, err := admin.DeleteTopics(ctx, own...)
	if err != nil {
		return err
	}
	for _, d := range deleted {
		if d.Err != nil && !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("%s: %w", d.Topic, d.Err)
		}
	}
	return nil
}

// Redis returns a real server for one test or, if REDIS_URL names a server, one of that server's databases.
func Redis(t testing.TB) backend.Redis {
	t.Helper()
	if named := server.Named(server.RedisVariable); named != "" {
		return redisDatabase(t, named)
	}
	return NewRedisServer(t).Settings()
}

// Postgres returns the URL of a fresh database on a real server.
func Postgres(t testing.TB) string {
	t.Helper()
	return freshDatabase(t, sharedServer(t, "postgres", server.PostgresVariable))
}

// freshDatabase creates a database on a server for the duration of the test, and returns the URL of the database. The
// parameter admin is the URL of another database on that server.
func freshDatabase(t testing.TB, admin string) string {
	t.Helper()
	database := unique()
	inPostgres(t, admin, "CREATE DATABASE "+database)
	t.Cleanup(func() { inPostgres(t, admin, "DROP DATABASE "+database+" WITH (FORCE)") })
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database
	return u.String()
}

func inPostgres(t testing.TB, address, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	pool, err := backend.Postgres{URL: address, PoolMax: 1}.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// EmbeddedKafka returns a broker in this process, in memory.
func EmbeddedKafka(t testing.TB) backend.Kafka {
	t.Helper()
	k, err := embedded.StartKafka(embedded.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	return backend.Kafka{Brokers: k.Brokers(), ClientID: "meshtest", TopicPrefix: unique() + "."}
}

// EmbeddedRedis returns a server in this process.
func EmbeddedRedis(t testing.TB) backend.Redis {
	t.Helper()
	r, err := embedded.StartRedis(embedded.RedisOptions{Password: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return backend.Redis{URL: r.URL()}
}

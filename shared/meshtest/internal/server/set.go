package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/shared/backend"
)

// These environment variables contain the addresses of the servers that tests share. A developer can instead set a
// variable that the mesh itself uses (see plainNames); tests then use the server that this variable names.
const (
	KafkaVariable    = "MESHTEST_KAFKA_BROKERS"
	RedisVariable    = "MESHTEST_REDIS_URL"
	PostgresVariable = "MESHTEST_POSTGRES_URL"
)

var plainNames = map[string]string{
	KafkaVariable: "KAFKA_BROKERS", RedisVariable: "REDIS_URL", PostgresVariable: "DATABASE_URL",
}

// Named returns the address in one of the variables above or, if that variable is not set, in the corresponding
// variable of the mesh (see plainNames). It returns "" if neither is set.
func Named(variable string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	return os.Getenv(plainNames[variable])
}

// All contains the names of the stores that a Set may have.
var All = []string{"kafka", "redis", "postgres"}

// Set contains the servers that the tests of several processes share. A server that the environment does not name is
// started, except Redis: a Redis starts within milliseconds, so each test starts its own.
type Set struct {
	named    map[string]string // variable -> address
	kafka    *Kafka
	postgres *Postgres
	versions []string
}

// StartSet finds or starts the servers of the given stores concurrently.
func StartSet(ctx context.Context, stores []string, log *slog.Logger) (*Set, error) {
	if err := removeStale(); err != nil {
		return nil, err
	}
	s := &Set{named: map[string]string{}, versions: make([]string, len(All))}
	var group errgroup.Group
	starts := []func() (string, string, error){
		func() (string, string, error) { return s.startKafka(ctx, log) },
		func() (string, string, error) { return s.startRedis(ctx) },
		func() (string, string, error) { return s.startPostgres(ctx, log) },
	}
	addresses := make([]string, len(All))
	for i, start := range starts {
		if slices.Contains(stores, All[i]) {
			group.Go(func() (err error) {
				addresses[i], s.versions[i], err = start()
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	for i, variable := range []string{KafkaVariable, RedisVariable, PostgresVariable} {
		if addresses[i] != "" {
			s.named[variable] = addresses[i]
		}
	}
	return s, nil
}

func (s *Set) startKafka(ctx context.Context, log *slog.Logger) (address, version string, err error) {
	if address = Named(KafkaVariable); address != "" {
		version = "Kafka at " + address
		return address, version, backend.Kafka{Brokers: strings.Split(address, ",")}.Check(ctx)
	}
	if s.kafka, err = StartKafka(ctx, log, 0); err != nil {
		return "", "", err
	}
	return s.kafka.settings.Brokers[0], "Apache Kafka " + KafkaVersion, nil
}

func (s *Set) startRedis(ctx context.Context) (address, version string, err error) {
	if address = Named(RedisVariable); address != "" {
		version, err = RedisVersion(ctx, backend.Redis{URL: address})
		return address, "Redis " + version, err
	}
	r, err := StartRedis(ctx)
	if err != nil {
		return "", "", err
	}
	version, err = RedisVersion(ctx, r.Settings())
	return "", "Redis " + version, errors.Join(err, r.Remove())
}

func (s *Set) startPostgres(ctx context.Context, log *slog.Logger) (address, version string, err error) {
	if address = Named(PostgresVariable); address == "" {
		if s.postgres, err = StartPostgres(ctx, log); err != nil {
			return "", "", err
		}
		address = s.postgres.URL()
	}
	pool, err := backend.Postgres{URL: address, PoolMax: 1}.Open(ctx)
	if err != nil {
		return "", "", err
	}
	defer pool.Close()
	rows, err := pool.Query(ctx, "SHOW server_version")
	if err != nil {
		return "", "", err
	}
	version, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	return address, "PostgreSQL " + version, err
}

// String describes the servers.
func (s *Set) String() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(s.versions), func(v string) bool { return v == "" }), ", ")
}

// Variables returns the environment variables by which tests find the servers, in the form NAME=address.
func (s *Set) Variables() (all []string) {
	for variable, address := range s.named {
		all = append(all, variable+"="+address)
	}
	slices.Sort(all)
	return all
}

// Environment returns this process's environment, but the variables for test servers are those that the method
// Variables returns. Environment also removes KAFKA_BROKERS, REDIS_URL and DATABASE_URL, so that services have only
// those values that a test sets for them.
func (s *Set) Environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(setting string) bool {
		for variable, plain := range plainNames {
			if strings.HasPrefix(setting, variable+"=") || strings.HasPrefix(setting, plain+"=") {
				return true
			}
		}
		return false
	})
	return append(env, s.Variables()...)
}

// Remove stops the started servers and deletes their data.
func (s *Set) Remove() error {
	var problems []error
	if s.kafka != nil {
		problems = append(problems, s.kafka.Remove())
	}
	if s.postgres != nil {
		problems = append(problems, s.postgres.Remove())
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("stop the servers for tests: %w", err)
	}
	return nil
}

package edumatrix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/process"
)

// embeddedStores are the stores that this process starts and stops.
type embeddedStores struct {
	lost  chan error // receives an error when the embedded PostgreSQL has ended unexpectedly
	stops []func() error
}

// stop stops the stores in reverse order.
func (e *embeddedStores) stop() error {
	var all []error
	for _, stop := range slices.Backward(e.stops) {
		all = append(all, stop())
	}
	return errors.Join(all...)
}

// startStores starts the stores for which no address is configured, in the order Postgres, Redis, Kafka, and sets their
// addresses in the configuration c. With KAFKA_ENABLED=false, it starts Kafka even if KAFKA_BROKERS is set. If a start
// fails, it stops the stores that it has started.
func startStores(ctx context.Context, c *config.Config, dir *dataDir, made secrets, log *slog.Logger) (_ *embeddedStores, err error) {
	e := &embeddedStores{lost: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.stop())
		}
	}()
	if !c.Given["postgres"] {
		if err := e.startPostgres(ctx, c, dir, made, log); err != nil {
			return nil, err
		}
	}
	if !c.Given["redis"] {
		password := or(c.Redis.Password, made.RedisPassword)
		redis, err := embedded.StartRedis(embedded.RedisOptions{Password: password})
		if err != nil {
			return nil, err
		}
		e.stops = append(e.stops, func() error { redis.Stop(); return nil })
		c.Redis = backend.Redis{URL: redis.URL()}
	}
	if embedsKafka(*c) {
		kafka, err := embedded.StartKafka(embedded.KafkaOptions{Dir: dir.sub("kafka"), Log: log})
		if err != nil {
			return nil, fmt.Errorf("embedded Kafka: %w", err)
		}
		e.stops = append(e.stops, func() error { kafka.Stop(); return nil })
		c.Kafka.Brokers = kafka.Brokers()
	}
	return e, nil
}

func embedsKafka(c config.Config) bool { return !c.Given["kafka"] || !c.KafkaEnabled }

func (e *embeddedStores) startPostgres(ctx context.Context, c *config.Config, dir *dataDir, made secrets, log *slog.Logger) error {
	postgres, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Dir: dir.sub("postgres"), User: c.PostgresUser,
		Password: or(c.PostgresPassword, made.PostgresPassword), Database: c.PostgresDB, Binaries: c.PostgresBin,
		Cache: process.Memory(process.DatabaseCache), Log: log})
	if err != nil {
		return err
	}
	c.Postgres.URL = postgres.URL()
	stopping, watched := make(chan struct{}), make(chan struct{})
	e.stops = append(e.stops, func() error {
		close(stopping)
		<-watched
		return postgres.Stop()
	})
	go func() {
		defer close(watched)
		select {
		case <-stopping:
		case <-postgres.Done():
			// PostgreSQL may have been stopped on purpose: a supervisor such as systemd sends its signal to this process
			// and, at the same time, to the children of this process. So report an error only if this process is not
			// stopped within lostAfter.
			select {
			case <-ctx.Done():
				return
			case <-stopping:
				return
			case <-time.After(lostAfter):
			}
			e.lost <- errors.New("the embedded PostgreSQL ended unexpectedly; see its log in " + dir.sub("postgres"))
		}
	}()
	return nil
}

// lostAfter is the time to wait, after PostgreSQL has ended, for the signal that ends this process.
const lostAfter = 2 * time.Second

func or(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}

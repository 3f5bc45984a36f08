// Package backend connects to the stores of the mesh: Postgres, Redis and Kafka. It creates topics and checks each
// store. If a store is unreachable, the error contains the store's name, its address and advice. No error contains a
// password. Package embedded starts such stores instead of connecting to existing ones.
package backend

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// Stores are the open stores of a process. The field of a store that the process does not need has the zero value.
type Stores struct {
	Postgres *pgxpool.Pool
	Redis    *redis.Client
	Kafka    Kafka // only the settings; each producer and consumer opens its own connections
}

// Close closes Redis and then Postgres. Kafka has nothing to close.
func (s *Stores) Close() error {
	var err error
	if s.Redis != nil {
		if err = s.Redis.Close(); errors.Is(err, redis.ErrClosed) {
			err = nil
		}
	}
	if s.Postgres != nil {
		s.Postgres.Close()
	}
	return err
}

// unreachable returns an error with the store that failed and its address. The parameter try is the advice in that
// error.
func unreachable(store, where, try string, err error) error {
	return fmt.Errorf("%s at %s: %w (%s)", store, where, err, try)
}

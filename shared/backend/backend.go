// Package backend knows the stores of the mesh: how Postgres, Redis and Kafka are reached, with the settings that
// existing installations have, what has to be there, and how each is checked. Whatever goes wrong is told with the
// store, its address and what to try, never with a password. The package embedded beneath starts stores of its own.
package backend

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// Stores are what one process has open; nil where it needs none.
type Stores struct {
	Postgres *pgxpool.Pool
	Redis    *redis.Client
	Kafka    Kafka // each producer and consumer has connections of its own
}

// Close closes what is open, last opened first.
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

// unreachable says which store failed, where, and what to try.
func unreachable(store, where, try string, err error) error {
	return fmt.Errorf("%s at %s: %w (%s)", store, where, err, try)
}

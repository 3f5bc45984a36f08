package health

import (
	"context"

	"github.com/edumatrix/interlinked/shared/backend"
)

// OfStores returns the checks of the stores that a process has open.
func OfStores(s *backend.Stores) (checks []Check) {
	if s.Postgres != nil {
		checks = append(checks, Check{"postgres", s.Postgres.Ping})
	}
	if s.Redis != nil {
		checks = append(checks, Check{"redis", func(ctx context.Context) error { return s.Redis.Ping(ctx).Err() }})
	}
	if len(s.Kafka.Brokers) > 0 {
		checks = append(checks, Check{"kafka", s.Kafka.Check})
	}
	return checks
}

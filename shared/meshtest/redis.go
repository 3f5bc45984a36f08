package meshtest

import (
	"context"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/edumatrix/interlinked/shared/backend"
)

// Redis has 16 databases by default. Tests do not use number 0, which may contain a developer's own data.
const (
	redisDatabases = 16
	redisLease     = "meshtest:lease"
	redisLeaseTime = 20 * time.Minute
)

// redisDatabase waits until one of the databases of a shared server is free, and leases it. The database is emptied
// before and after the test. The lease is a key in the database, so emptying the database after the test ends the
// lease.
func redisDatabase(t testing.TB, address string) backend.Redis {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal("REDIS_URL: it has to look like redis://:password@host:6379/0")
	}
	ctx, cancel := context.WithTimeout(context.Background(), redisLeaseTime)
	defer cancel()
	for database := 1; ; database = database%(redisDatabases-1) + 1 {
		u.Path = "/" + strconv.Itoa(database)
		r := backend.Redis{URL: u.String()}
		if lease(t, ctx, r) {
			return r
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no database of Redis at %s is free: other tests hold all", r.Where())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func lease(t testing.TB, ctx context.Context, r backend.Redis) bool {
	t.Helper()
	client, err := r.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := client.SetNX(ctx, redisLease, t.Name(), redisLeaseTime).Result()
	if err != nil {
		t.Fatalf("lease a database of Redis at %s: %v", r.Where(), err)
	}
	if !taken {
		_ = client.Close() // the client was used only for the lease
		return false
	}
	// An earlier test that did not end in order may have left its keys in the database.
	if _, err := client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.FlushDB(ctx)
		p.Set(ctx, redisLease, t.Name(), redisLeaseTime)
		return nil
	}); err != nil {
		t.Fatalf("empty a database of Redis at %s: %v", r.Where(), err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		if err := client.FlushDB(ctx).Err(); err != nil {
			t.Errorf("empty the test's database of Redis: %v", err)
		}
		_ = client.Close() // the test is over
	})
	return true
}

package backend

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// oldestPostgres is the first version with transaction_timeout, with which the server ends a stalled transaction.
const oldestPostgres = 17

func verifyPostgres(ctx context.Context, p Postgres) []Result {
	var pool *pgxpool.Pool
	defer func() {
		if pool != nil {
			pool.Close()
		}
	}()
	return perform(ctx, "Postgres", []check{
		{"reachable", func(ctx context.Context) (_ finding, err error) {
			pool, err = p.Open(ctx)
			return finding{detail: p.Where()}, err
		}},
		{"version", func(ctx context.Context) (finding, error) {
			var version string
			var number int
			err := pool.QueryRow(ctx, "SELECT current_setting('server_version'), current_setting('server_version_num')::int").
				Scan(&version, &number)
			if err == nil && number/10_000 < oldestPostgres {
				err = fmt.Errorf("it is %s: version %d or later is needed", version, oldestPostgres)
			}
			return finding{detail: version}, err
		}},
		{"write and read", func(ctx context.Context) (finding, error) {
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return writeAndRead(ctx, tx) })
			return finding{detail: "a row of a temporary table"}, err
		}},
	})
}

func writeAndRead(ctx context.Context, tx pgx.Tx) error {
	wrote, read := uuid.NewString(), ""
	if _, err := tx.Exec(ctx, "CREATE TEMPORARY TABLE edumatrix_verify (value text) ON COMMIT DROP"); err != nil {
		return fmt.Errorf("create a temporary table: %w", err)
	}
	if _, err := tx.Exec(ctx, "INSERT INTO edumatrix_verify VALUES ($1)", wrote); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := tx.QueryRow(ctx, "SELECT value FROM edumatrix_verify").Scan(&read); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if read != wrote {
		return fmt.Errorf("wrote %s, read %s", wrote, read)
	}
	return nil
}

func verifyRedis(ctx context.Context, r Redis) []Result {
	var client *redis.Client
	defer func() {
		if client != nil {
			_ = client.Close() // the result of the check is known already
		}
	}()
	return perform(ctx, "Redis", []check{
		{"reachable", func(ctx context.Context) (_ finding, err error) {
			client, err = r.Open(ctx)
			return finding{detail: r.Where()}, err
		}},
		{"version", func(ctx context.Context) (finding, error) { return redisVersion(ctx, client) }},
		{"write and read", func(ctx context.Context) (finding, error) {
			err := writeAndExpire(ctx, client)
			return finding{detail: "a key, until it expired"}, err
		}},
	})
}

func redisVersion(ctx context.Context, client *redis.Client) (finding, error) {
	info, err := client.Info(ctx, "server").Result()
	if err != nil && strings.Contains(err.Error(), "section (server) is not supported") {
		return finding{detail: "embedded, which has no version"}, nil
	}
	if err != nil {
		return finding{detail: "the server reports no version: " + err.Error(), warn: true}, nil
	}
	for line := range strings.Lines(info) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
			return judgeRedis(version)
		}
	}
	return finding{detail: "the server reports no version", warn: true}, nil
}

// judgeRedis checks the version of a Redis server. The mesh is tested and shipped with 7.4; 7.0 has all commands that
// the mesh uses.
func judgeRedis(version string) (finding, error) {
	parts := append(strings.Split(version, "."), "0")
	major, err := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	switch {
	case err != nil || err2 != nil:
		return finding{detail: version, warn: true}, nil
	case major < 7:
		return finding{}, fmt.Errorf("it is %s: version 7.0 or later is needed, 7.4 is advised", version)
	case major == 7 && minor < 4:
		return finding{detail: version + ": 7.4 or later is advised", warn: true}, nil
	}
	return finding{detail: version}, nil
}

func writeAndExpire(ctx context.Context, client *redis.Client) error {
	key, wrote := "edumatrix:verify:"+uuid.NewString(), uuid.NewString()
	if err := client.Set(ctx, key, wrote, 500*time.Millisecond).Err(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	read, err := client.Get(ctx, key).Result()
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if read != wrote {
		return fmt.Errorf("wrote %s, read %s", wrote, read)
	}
	for range 100 {
		if err := client.Get(ctx, key).Err(); errors.Is(err, redis.Nil) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(30 * time.Millisecond):
		}
	}
	return errors.New("a key of 500 ms was still there after 3 s")
}

package backend

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What existing installations are tuned to.
const (
	defaultPoolMax = 20
	postgresIdle   = 30 * time.Second
	postgresDial   = 2 * time.Second
	postgresUses   = 7500
)

const tryPostgres = "is it running, and is DATABASE_URL right?"

// Postgres says where the database is.
type Postgres struct {
	URL     string // may end in ?schema=public, which other clients of the same installation want
	PoolMax int32  // default 20
}

// Open connects a pool and asks the server for an answer.
func (p Postgres) Open(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := p.poolConfig()
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, unreachable("Postgres", p.Where(), tryPostgres, err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, unreachable("Postgres", p.Where(), tryPostgres, err)
	}
	return pool, nil
}

func (p Postgres) poolConfig() (*pgxpool.Config, error) {
	clean, err := p.withoutSchema()
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(clean)
	if err != nil {
		// pgx hides the password in its errors.
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	if config.MaxConns = p.PoolMax; config.MaxConns <= 0 {
		config.MaxConns = defaultPoolMax
	}
	config.MaxConnIdleTime = postgresIdle
	config.HealthCheckPeriod = postgresIdle / 3 // how often idle ones are looked for
	config.ConnConfig.ConnectTimeout = postgresDial
	config.AfterRelease = retire(postgresUses)
	return config, nil
}

// retire lets a connection go after so many uses, counted when it is given back.
func retire(after int) func(*pgx.Conn) bool {
	const key = "edumatrix.uses"
	return func(c *pgx.Conn) bool {
		kept := c.PgConn().CustomData()
		uses, _ := kept[key].(int)
		kept[key] = uses + 1
		return uses+1 < after
	}
}

// withoutSchema strips the parameter that is not the server's.
func (p Postgres) withoutSchema() (string, error) {
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return "", fmt.Errorf("DATABASE_URL: it has to look like postgresql://user:password@host:5432/database")
	}
	q := u.Query()
	if !q.Has("schema") {
		return p.URL, nil
	}
	q.Del("schema")
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// Where names host, port and database.
func (p Postgres) Where() string {
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" {
		return "(no address)"
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = strconv.Itoa(5432)
	}
	return net.JoinHostPort(host, port) + u.Path
}

// String does not tell the password, and nor do the ways below.
func (p Postgres) String() string { return "postgres " + p.Where() }

// GoString is String.
func (p Postgres) GoString() string { return p.String() }

// LogValue is String.
func (p Postgres) LogValue() slog.Value { return slog.StringValue(p.String()) }

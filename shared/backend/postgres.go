package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// These are the values that existing installations are tuned to.
const (
	defaultPoolMax = 20
	postgresIdle   = 30 * time.Second
	postgresDial   = 2 * time.Second
	postgresUses   = 7500
)

const tryPostgres = "is it running, and is DATABASE_URL right?"

// Postgres contains the address of the database and the size of the pool.
type Postgres struct {
	URL     string // may end in ?schema=public, which other clients of the same installation need
	PoolMax int32  // maximum number of connections of the pool (0: 20)
}

// Open connects a pool and pings the server.
func (p Postgres) Open(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := p.poolConfig()
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, unreachable("Postgres", p.Where(), tryPostgres+libpqSet(), err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, unreachable("Postgres", p.Where(), tryPostgres+libpqSet(), err)
	}
	return pool, nil
}

func (p Postgres) poolConfig() (*pgxpool.Config, error) {
	clean, err := p.withoutForeignParameters()
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(clean)
	if err != nil {
		// pgx omits the password from its errors.
		return nil, fmt.Errorf("DATABASE_URL: %w%s", err, libpqSet())
	}
	if config.MaxConns = p.PoolMax; config.MaxConns <= 0 {
		config.MaxConns = defaultPoolMax
	}
	config.MaxConnIdleTime = postgresIdle
	config.HealthCheckPeriod = postgresIdle / 3 // interval of the checks for idle connections
	config.ConnConfig.ConnectTimeout = postgresDial
	config.AfterRelease = retire(postgresUses)
	return config, nil
}

// retire returns a function for pgxpool's AfterRelease. That function counts how often a connection was released,
// and makes the pool close the connection after the given number of uses.
func retire(after int) func(*pgx.Conn) bool {
	const key = "edumatrix.uses"
	return func(c *pgx.Conn) bool {
		kept := c.PgConn().CustomData()
		uses, _ := kept[key].(int)
		kept[key] = uses + 1
		return uses+1 < after
	}
}

// withoutForeignParameters checks the URL and returns it without its foreign parameters (see IsForeignParameter).
func (p Postgres) withoutForeignParameters() (string, error) {
	u, err := url.Parse(p.URL)
	if err != nil || (u.Host == "" && u.Query().Get("host") == "") || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return "", fmt.Errorf("DATABASE_URL: it has to look like postgresql://user:password@host:5432/database")
	}
	if HasUnescapedAt(p.URL) {
		return "", errors.New("DATABASE_URL: an @ in its user or password has to be written as %40")
	}
	q, changed := u.Query(), false
	for name := range q {
		if IsForeignParameter(name) {
			q.Del(name)
			changed = true
		}
	}
	if !changed {
		return p.URL, nil
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// IsForeignParameter reports whether the mesh ignores a parameter of DATABASE_URL. The mesh ignores the parameters of
// other clients of the same installation, such as Prisma, and the parameters of pgx whose values the mesh itself
// chooses.
func IsForeignParameter(name string) bool {
	switch name {
	case "schema", "connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size", "sslaccept",
		"sslidentity", "max_idle_connection_lifetime", "max_connection_lifetime", "single_use_connections":
		return true
	case "default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity":
		return true // a parameter of pgx, but the mesh chooses how each statement is prepared
	}
	return strings.HasPrefix(name, "pool_") // a parameter of pgx, but the mesh configures the pool
}

// HasUnescapedAt reports whether a URL seems to have an unescaped @ in its user or password. It returns true if the
// authority, the part between :// and the first /, ? or #, contains several @, or if HasCutOffAt returns true. In
// either case the host is ambiguous, and a part of the password could be shown as the host.
func HasUnescapedAt(address string) bool {
	authority, _ := cutAuthority(address)
	return strings.Count(authority, "@") > 1 || HasCutOffAt(address)
}

// HasCutOffAt reports whether a /, ? or # of the password seems to end the authority of a URL. Then the rest of the
// password, up to the @, would be taken for a path, a query or a fragment.
func HasCutOffAt(address string) bool {
	authority, rest := cutAuthority(address)
	return !strings.Contains(authority, "@") && strings.Contains(rest, "@")
}

func cutAuthority(address string) (authority, rest string) {
	_, rest, _ = strings.Cut(address, "://")
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return rest[:i], rest[i:]
	}
	return rest, ""
}

// libpqVariables are the environment variables from which PostgreSQL's own clients, and pgx, take the parameters that a
// URL does not contain.
var libpqVariables = []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGAPPNAME",
	"PGCONNECT_TIMEOUT", "PGSSLMODE", "PGSSLKEY", "PGSSLCERT", "PGSSLCERTMODE", "PGSSLSNI", "PGSSLROOTCERT", "PGSSLPASSWORD",
	"PGSSLNEGOTIATION", "PGTARGETSESSIONATTRS", "PGSERVICE", "PGSERVICEFILE", "PGTZ", "PGOPTIONS", "PGMINPROTOCOLVERSION",
	"PGMAXPROTOCOLVERSION", "PGCHANNELBINDING", "PGREQUIREAUTH"}

// IgnoreLibpqVariables unsets libpq's variables, for a process that starts its own database.
func IgnoreLibpqVariables() {
	for _, name := range libpqVariables {
		_ = os.Unsetenv(name) // fails only for invalid names
	}
}

// libpqSet returns a text for errors that lists the variables of libpq that are set, because they take effect in
// addition to DATABASE_URL. The text is empty if none is set.
func libpqSet() string {
	var set []string
	for _, name := range libpqVariables {
		if os.Getenv(name) != "" {
			set = append(set, name)
		}
	}
	if len(set) == 0 {
		return ""
	}
	return "; also set: " + strings.Join(set, ", ")
}

// Where returns the host, the port and the database. If the URL has the parameter host, such as the folder of the
// server's socket, Where returns that parameter and the database. It returns "(no address)" if the URL cannot be parsed
// or has no host.
func (p Postgres) Where() string {
	u, err := url.Parse(p.URL)
	if err != nil {
		return "(no address)"
	}
	if socket := u.Query().Get("host"); socket != "" { // takes precedence over the URL's host
		return socket + u.Path
	}
	if u.Host == "" {
		return "(no address)"
	}
	if strings.Contains(u.Host, ",") { // several servers, tried in turn
		return u.Host + u.Path
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = strconv.Itoa(5432)
	}
	return net.JoinHostPort(host, port) + u.Path
}

// String returns the address without user and password.
func (p Postgres) String() string { return "postgres " + p.Where() }

// GoString returns the same text as String.
func (p Postgres) GoString() string { return p.String() }

// LogValue returns the same text as String.
func (p Postgres) LogValue() slog.Value { return slog.StringValue(p.String()) }

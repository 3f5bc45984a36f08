package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/filelock"
)

// BinariesVariable is the environment variable with the folder of PostgreSQL's programs. Error texts mention it.
const BinariesVariable = "EDUMATRIX_POSTGRES_BIN"

// connections is the maximum number of connections of an embedded server.
const connections = 300

// PostgresOptions configure an embedded server.
type PostgresOptions struct {
	Dir      string // contains the data, the server's log and a lock; created if missing
	User     string // a superuser, created if missing; default edu_matrix_user
	Password string // default: a new one at each start
	Database string // created if missing; default edu_matrix_db
	Port     int    // 0: a free one

	Binaries string            // a folder of PostgreSQL's programs, 17 or later; default: installed, else downloaded
	CacheDir string            // contains downloaded programs; default: a folder of the user's cache (root: the machine's)
	Cache    int64             // bytes of memory for the cache of pages (0: 128 MiB); at least 128 MiB, at most 2 GiB
	Settings map[string]string // further server settings, such as fsync=off in tests; they override the usual ones
	Log      *slog.Logger      // logs steps that take long, such as a download; default: nothing is logged
}

// Postgres is a PostgreSQL server that is a child of this process.
type Postgres struct {
	options PostgresOptions
	port    int
	cluster *cluster
	server  *child
	lock    *filelock.Lock
	stop    sync.Once
	stopErr error
}

// StartPostgres starts a server on the data of o.Dir, which it creates if missing, and returns once the database
// accepts connections. ctx bounds the start, not the server's life. On Linux, the server ends with this process,
// however the process ends. On other systems, a killed process leaves its server behind, and the next start stops that
// server first.
//
// StartPostgres unsets libpq's variables in this process, because pgx would apply them to connections to this server as
// well.
func StartPostgres(ctx context.Context, o PostgresOptions) (_ *Postgres, err error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	backend.IgnoreLibpqVariables()
	p := &Postgres{options: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop())
		}
	}()
	if err := p.start(ctx); err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL in %s: %w", o.Dir, err)
	}
	return p, nil
}

func (o *PostgresOptions) complete() (err error) {
	if o.Dir == "" {
		return errors.New("the folder for the data is missing: set Dir")
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	if o.User == "" {
		o.User = "edu_matrix_user"
	}
	if o.Database == "" {
		o.Database = "edu_matrix_db"
	}
	if o.Password == "" {
		o.Password = rand.Text()
	}
	if strings.ContainsFunc(o.User+o.Password+o.Database, func(r rune) bool { return r < ' ' }) {
		return errors.New("user, password and database must not contain control characters")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (p *Postgres) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(p.options.Dir, 0o755); err != nil {
		return err
	}
	if p.lock, err = lockFile(filepath.Join(p.options.Dir, "lock")); err != nil {
		return err
	}
	if p.cluster, err = openCluster(ctx, p.options); err != nil {
		return err
	}
	if err := p.cluster.stopOrphan(ctx); err != nil {
		return err
	}
	if p.options.Port != 0 {
		if err := portIsFree(p.options.Port); err != nil {
			return err
		}
	}
	if err := p.cluster.create(ctx); err != nil {
		return err
	}
	if err := p.serve(ctx); err != nil {
		return err
	}
	err = p.cluster.ensureDatabase(ctx, p.URL())
	if !wrongPassword(err) {
		return err
	}
	// The data was created with another database user or password. Set the configured ones: this process has full access
	// to the data anyway.
	if err := p.server.stop(p.cluster); err != nil {
		return err
	}
	if err := p.cluster.setPassword(ctx); err != nil {
		return err
	}
	if err := p.serve(ctx); err != nil {
		return err
	}
	return p.cluster.ensureDatabase(ctx, p.URL())
}

// serve starts the server and waits until it accepts connections. If no port is configured and another process takes
// the chosen free port first, serve tries another free port, and gives up after five ports.
func (p *Postgres) serve(ctx context.Context) (err error) {
	for attempt := 1; ; attempt++ {
		if p.port = p.options.Port; p.port == 0 {
			if p.port, err = freePort(); err != nil {
				return err
			}
		}
		p.server, err = p.cluster.serve(ctx, p.port)
		if !errors.Is(err, errPortInUse) || p.options.Port != 0 || attempt == 5 {
			return err
		}
	}
}

// URL returns the URL of the database, including the password.
func (p *Postgres) URL() string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(p.options.User, p.options.Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)), Path: "/" + p.options.Database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port returns the server's port on loopback.
func (p *Postgres) Port() int { return p.port }

// PID returns the process id of the server.
func (p *Postgres) PID() int { return p.server.pid() }

// Version returns the version that the server's programs report, such as "17.11".
func (p *Postgres) Version() string { return p.cluster.binaries.version }

// Done returns a channel that is closed when the server has ended, by Stop or unexpectedly.
func (p *Postgres) Done() <-chan struct{} { return p.server.done }

// Stop stops the server and waits until it has ended. The server first writes its memory to disk. If the server has not
// ended after 20 s, Stop makes it end at once. If it has not ended after another 20 s, Stop kills it and returns an
// error. Stop may be called again.
func (p *Postgres) Stop() error {
	p.stop.Do(func() {
		if p.server != nil {
			p.stopErr = p.server.stop(p.cluster)
		}
		if p.cluster != nil {
			p.cluster.close()
		}
		if p.lock != nil {
			p.lock.Release()
		}
	})
	return p.stopErr
}

var errPortInUse = errors.New("port in use")

func portIsFree(port int) error {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("port %d of 127.0.0.1 is in use (%w): stop the program that listens there, or choose another port",
			port, err)
	}
	return l.Close()
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// slow logs an operation that takes longer than a second, as soon as the second has passed. The caller calls the
// returned function when the operation ends.
func slow(log *slog.Logger, what string, args ...any) (over func()) {
	t := time.AfterFunc(time.Second, func() { log.Info(what, args...) })
	return func() { t.Stop() }
}

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

// BinariesVariable names the environment variable that says where PostgreSQL's programs are; errors tell people of it.
const BinariesVariable = "EDUMATRIX_POSTGRES_BIN"

// connections is what the servers that we start take at once.
const connections = 300

// PostgresOptions says where a server keeps its data and how it is reached.
type PostgresOptions struct {
	Dir      string // keeps the data, the server's log and a lock; made when missing
	User     string // owns the database; default edu_matrix_user
	Password string // default: another at each start
	Database string // made when missing; default edu_matrix_db
	Port     int    // 0: a free one

	Binaries string            // a folder of PostgreSQL's programs, 17 or later; default: installed, else downloaded
	CacheDir string            // keeps downloaded programs; default: a folder of the user's (root's: the machine's) cache
	Cache    int64             // bytes of memory for the cache of pages, from 128 MiB (default) to 2 GiB
	Settings map[string]string // further server settings, such as fsync=off in tests; they win
	Log      *slog.Logger      // told what takes over a second; default: nowhere
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

// StartPostgres starts a server on the data of o.Dir, which it makes when there is none, and returns once the database
// accepts connections. ctx bounds the start, not the server's life. The server ends with this process, however it ends;
// where one was left over all the same, it is stopped first.
//
// It unsets libpq's variables in this process, because pgx would apply them to connections to this server as well.
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
		return errors.New("it needs a folder for its data")
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
	// The data was made with another user or password. A user who may start the server may also change who it belongs
	// to.
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

// serve starts the server and waits until it accepts connections. A port that is free may be taken by another before
// the server has it: then the next.
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

// URL is where the database is reached, password included.
func (p *Postgres) URL() string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(p.options.User, p.options.Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)), Path: "/" + p.options.Database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is where the server listens on loopback.
func (p *Postgres) Port() int { return p.port }

// PID is the server's process.
func (p *Postgres) PID() int { return p.server.pid() }

// Version is what the server's programs call themselves: "17.11".
func (p *Postgres) Version() string { return p.cluster.binaries.version }

// Done is closed when the server has ended, by Stop or by itself.
func (p *Postgres) Done() <-chan struct{} { return p.server.done }

// Stop ends the server after it has written what it has to, and waits for it. It may be called again.
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
		return fmt.Errorf("port %d of 127.0.0.1 is in use (%w): stop what listens there, or choose another", port, err)
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

// slow tells of something that takes over a second, once it does; the returned function says that it is over.
func slow(log *slog.Logger, what string, args ...any) (over func()) {
	t := time.AfterFunc(time.Second, func() { log.Info(what, args...) })
	return func() { t.Stop() }
}

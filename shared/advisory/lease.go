package advisory

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/retry"
)

// Lease is the exclusive right of one instance to do something, such as to relay a log. It is an advisory lock of a
// database session. An instance that dies loses the lease with its connection. If an instance freezes or is cut off,
// the server gets no messages from it. After LeaseOptions.Silence without a message, the server ends the database
// session, and the lease is lost. Within a transaction, the server waits 5 s instead. Later calls of Use and Lend fail,
// because the connection of that session is closed.
type Lease struct {
	mu   sync.Mutex
	conn *pgx.Conn

	lost context.CancelCauseFunc
	kept sync.WaitGroup
}

// LeaseOptions configure a Lease.
type LeaseOptions struct {
	Key     int64  // key of the lock
	Purpose string // used in errors, such as "the relay"
	Schema  string // search_path of the lease's database session
	// Silence is the time without a message after which the server ends a database session that is not in a
	// transaction; 0: 2.5 s.
	Silence time.Duration
	// Renewal is the interval between the messages that renew the lease; 0: 600 ms.
	Renewal time.Duration
	// Every is the average time between two attempts to get the lock (see Await). It is required.
	Every time.Duration
	// Standby is called when the connection is open, before the first attempt to get the lock. Nil: not called.
	Standby func()
}

// TakeLease waits until this instance gets the lease, on a database connection of its own. The returned context ends
// when the lease is lost or released, or when ctx ends. Commits on this connection do not wait for the disk. So a crash
// of the server may undo changes that were made under the lease, and the next holder has to make them again.
func TakeLease(ctx context.Context, c *pgx.ConnConfig, o LeaseOptions) (*Lease, context.Context, error) {
	if o.Silence <= 0 {
		o.Silence = 2500 * time.Millisecond
	}
	if o.Renewal <= 0 {
		o.Renewal = 600 * time.Millisecond
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, nil, fmt.Errorf("connect for %s: %w", o.Purpose, err)
	}
	x := &Lease{conn: conn}
	_, err = conn.Exec(ctx, `SELECT set_config('idle_session_timeout', $1, false),
  set_config('synchronous_commit', 'off', false), set_config('idle_in_transaction_session_timeout', '5s', false),
  set_config('search_path', $2, false)`, strconv.FormatInt(o.Silence.Milliseconds(), 10)+"ms",
		pgx.Identifier{o.Schema}.Sanitize())
	if err == nil {
		if o.Standby != nil {
			o.Standby()
		}
		err = Await(ctx, conn, o.Key, o.Every)
	}
	if err != nil {
		x.close(ctx)
		return nil, nil, fmt.Errorf("wait for the lease of %s: %w", o.Purpose, err)
	}
	ctx, x.lost = context.WithCancelCause(ctx)
	x.kept.Go(func() { x.keep(ctx, o.Renewal) })
	return x, ctx, nil
}

// keep renews the lease by pinging the server.
func (x *Lease) keep(ctx context.Context, renewal time.Duration) {
	for retry.Sleep(ctx, renewal) {
		_ = x.Use(ctx, func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
	}
}

// Use calls Lend with a context that ends after 5 s, but does not end with ctx.
func (x *Lease) Use(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return x.Lend(ctx, f)
}

// Lend calls the function f with the lease's connection, one call at a time. If f fails, the lease is lost.
func (x *Lease) Lend(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	err := f(ctx, x.conn)
	if err != nil {
		x.lost(fmt.Errorf("the lease is lost: %w", err))
	}
	return err
}

// Release gives up the lease, so that another instance can take it at once.
func (x *Lease) Release(ctx context.Context) {
	x.lost(errors.New("the lease was released"))
	x.kept.Wait()
	x.close(ctx)
}

func (x *Lease) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = x.conn.Close(ctx)
}

package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/retry"
)

// lease is the exclusive right of one instance to relay a log, or to apply it to a projection. It is a session lock of
// Postgres. An instance that dies loses it with its connection; one that freezes or is cut off loses it after
// leaseSilence without a message to the server. Its later writes fail, because they use the same session.
type lease struct {
	mu   sync.Mutex
	conn *pgx.Conn
	used time.Time // when the last successful request to the server began

	lost context.CancelCauseFunc
	kept sync.WaitGroup
}

const (
	leaseSilence = 2500 * time.Millisecond
	leaseRenewal = 600 * time.Millisecond
)

// takeLease waits until this instance gets the lease for a purpose, which it tries about once per interval every. It
// calls standby once the server has answered. The returned context ends when the lease is lost.
func (l *Log) takeLease(ctx context.Context, purpose string, renewal, every time.Duration, standby func()) (*lease,
	context.Context, error) {
	conn, err := pgx.ConnectConfig(ctx, l.o.Pool.Config().ConnConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("connect for the %s: %w", purpose, err)
	}
	x := &lease{conn: conn}
	// A crash of the server may lose what was written under a lease; it is then written again.
	_, err = conn.Exec(ctx, `SELECT set_config('idle_session_timeout', $1, false),
  set_config('synchronous_commit', 'off', false), set_config('idle_in_transaction_session_timeout', '5s', false),
  set_config('search_path', $2, false)`, milliseconds(l.times.silence), pgx.Identifier{l.o.Owner}.Sanitize())
	if err == nil {
		standby()
		err = advisory.Await(ctx, conn, lockKey(l.o.Owner, purpose), every)
	}
	if err != nil {
		x.close(ctx)
		return nil, nil, fmt.Errorf("wait for the lease of the %s: %w", purpose, err)
	}
	x.used = time.Now()
	ctx, x.lost = context.WithCancelCause(ctx)
	x.kept.Go(func() { x.keep(ctx, renewal) })
	return x, ctx, nil
}

// keep renews the lease by pinging the server.
func (x *lease) keep(ctx context.Context, renewal time.Duration) {
	for retry.Sleep(ctx, renewal) {
		_ = x.use(ctx, func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
	}
}

// use calls f with the lease's session, for a short operation that is completed even if ctx ends.
func (x *lease) use(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return x.lend(ctx, f)
}

// lend calls f with the lease's session. If f fails, the lease is lost.
func (x *lease) lend(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	begun := time.Now()
	err := f(ctx, x.conn)
	if err != nil {
		x.lost(fmt.Errorf("the lease is lost: %w", err))
	} else {
		x.used = begun
	}
	return err
}

// giveUp releases the lease, so that another instance can take it at once.
func (x *lease) giveUp(ctx context.Context) {
	x.lost(errors.New("the lease was released"))
	x.kept.Wait()
	x.close(ctx)
}

func (x *lease) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = x.conn.Close(ctx)
}

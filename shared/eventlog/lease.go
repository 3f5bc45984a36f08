package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// lease is the right to relay a log, which one instance has at a time: a session's lock. A holder that dies loses it
// with its connection, one that freezes or is cut off once the server has not heard of it for leaseSilence; and what it
// would save after that goes nowhere, as it is saved by the same session.
type lease struct {
	mu   sync.Mutex
	conn *pgx.Conn
	used time.Time // when the server was last asked something that it answered

	lost context.CancelCauseFunc
	kept sync.WaitGroup
}

const (
	leaseSilence = 2500 * time.Millisecond
	leaseRenewal = 600 * time.Millisecond
)

// takeLease waits until no other instance has the lease. The context returned ends when it is lost.
func (l *Log) takeLease(ctx context.Context, renewal time.Duration) (*lease, context.Context, error) {
	conn, err := pgx.ConnectConfig(ctx, l.o.Pool.Config().ConnConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("connect for the relay: %w", err)
	}
	x := &lease{conn: conn}
	// A position that the relay saves may be lost by a crash of the server: the events after it are then relayed again.
	_, err = conn.Exec(ctx, `SELECT set_config('idle_session_timeout', $1, false),
  set_config('synchronous_commit', 'off', false)`, milliseconds(leaseSilence))
	if err == nil {
		err = awaitLock(ctx, conn, lockKey(l.o.Owner, "relay"))
	}
	if err != nil {
		x.close(ctx)
		return nil, nil, fmt.Errorf("wait for the relay's lease: %w", err)
	}
	x.used = time.Now()
	ctx, x.lost = context.WithCancelCause(ctx)
	x.kept.Go(func() { x.keep(ctx, renewal) })
	return x, ctx, nil
}

// keep makes the server hear of us.
func (x *lease) keep(ctx context.Context, renewal time.Duration) {
	for sleep(ctx, renewal) {
		_ = x.use(ctx, func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
	}
}

// use lends the lease's session. Where that fails the lease is lost. A statement that is under way when ctx ends is
// finished.
func (x *lease) use(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	begun := time.Now()
	err := f(ctx, x.conn)
	if err != nil {
		x.lost(fmt.Errorf("the relay's lease is lost: %w", err))
	} else {
		x.used = begun
	}
	return err
}

// giveUp ends the lease; another instance has it at once.
func (x *lease) giveUp(ctx context.Context) {
	x.lost(errors.New("the relay ends"))
	x.kept.Wait()
	x.close(ctx)
}

func (x *lease) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = x.conn.Close(ctx)
}

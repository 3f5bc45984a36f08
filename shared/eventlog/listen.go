package eventlog

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/retry"
)

// newIncarnation is the payload of a notification that a new incarnation has begun. The payload of all other
// notifications is a position.
const newIncarnation = "incarnation"

// channel returns the name of the channel on which instances notify each other of commits.
func (l *Log) channel() string { return "eventlog_" + l.o.Owner }

// listen receives the notifications of all instances (see notifyAll and reincarnate), until ctx ends.
func (l *Log) listen(ctx context.Context) {
	var delay retry.Backoff
	for ctx.Err() == nil {
		err := l.listenOnce(ctx, &delay)
		if ctx.Err() != nil {
			return
		}
		// The connection may have ended because the server has crashed. A crash may undo the last transactions of
		// projections, so the positions in memory may be too high.
		l.applied.Forget()
		l.waiting.set("listener", "postgres", err)
		l.o.Log.WarnContext(ctx, "listening to the log failed, retrying", "error", err)
		delay.Wait(ctx)
	}
}

func (l *Log) listenOnce(ctx context.Context, delay *retry.Backoff) error {
	conn, err := pgx.ConnectConfig(ctx, l.o.Pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to listen: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+l.channel()); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.applied.Forget() // positions that were read before this connection listened may be too high as well
	// This connection gets no notifications of earlier commits, so read the head. If a failover ended the previous
	// connection, the log may have lost commits.
	before := l.history.now()
	at, position, err := l.readHead(ctx, conn)
	if err != nil {
		return err
	}
	if before.lost(at, position) {
		_, err := l.reincarnate(ctx, conn, at.number, before.position,
			fmt.Sprintf("the log ends at %d, and this instance has seen it at %d", position, before.position))
		if err != nil {
			return err
		}
	}
	l.waiting.set("listener", "postgres", nil)
	delay.Reset()
	for {
		if err := l.handleNotification(ctx, conn); err != nil {
			return err
		}
	}
}

// handleNotification waits up to 10 s for a notification and handles it. If none arrives, it pings the server.
func (l *Log) handleNotification(ctx context.Context, conn *pgx.Conn) error {
	waits, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	n, err := conn.WaitForNotification(waits)
	if err == nil {
		if n.Payload == newIncarnation {
			l.applied.Forget()
			_, _, err := l.readHead(ctx, conn)
			return err
		}
		if position, err := strconv.ParseInt(n.Payload, 10, 64); err == nil {
			l.head.Reach(catalog.Position(position))
		}
		return nil
	}
	if waits.Err() == nil || ctx.Err() != nil {
		return fmt.Errorf("wait for a notification: %w", err)
	}
	pings, stop := context.WithTimeout(ctx, 3*time.Second)
	defer stop()
	if err := conn.Ping(pings); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

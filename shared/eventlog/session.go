package eventlog

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/retry"
)

// session is the connection on which a Log commits. Its settings are made once, when it connects. Only the committing
// goroutine uses it.
type session struct {
	log     *Log
	conn    *pgx.Conn // nil: not connected
	used    time.Time // when the last transaction ended
	backoff retry.Backoff
	retry   time.Time // no connection attempt before this time
}

// maxReconnectDelay bounds the delay of commits after the database has become available again.
const maxReconnectDelay = time.Second

// get returns the connection. It connects first if there is no connection, or if the connection was lost.
func (s *session) get(ctx context.Context) (*pgx.Conn, error) {
	if s.conn != nil && !s.conn.IsClosed() && time.Since(s.used) > time.Second {
		// The server may have closed an idle connection. The ping detects this before a commit fails.
		bounded, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := s.conn.Ping(bounded)
		cancel()
		if err != nil {
			s.close(ctx)
		}
	}
	if s.conn != nil && !s.conn.IsClosed() {
		return s.conn, nil
	}
	if wait := time.Until(s.retry); wait > 0 && !retry.Sleep(ctx, wait) {
		return nil, ctx.Err()
	}
	conn, err := s.log.connectToCommit(ctx)
	if err != nil {
		s.retry = time.Now().Add(min(s.backoff.Next(), maxReconnectDelay))
		return nil, err
	}
	s.backoff.Reset()
	s.conn = conn
	return conn, nil
}

func (s *session) close(ctx context.Context) {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx)
	s.conn = nil
}

// connectToCommit opens a connection with the settings under which transactions commit.
func (l *Log) connectToCommit(ctx context.Context) (*pgx.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(bounded, l.o.Pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connect to commit: %w", err)
	}
	if _, err := conn.Exec(bounded, sqlGuard, milliseconds(lockWaitSlice), milliseconds(l.times.hold), false); err != nil {
		_ = conn.Close(bounded)
		return nil, fmt.Errorf("prepare a connection to commit: %w", err)
	}
	return conn, nil
}

// notices contains the requests to notify other instances of commits.
type notices chan struct{}

// add requests a notification of the newest position. It never blocks.
func (n notices) add() {
	select {
	case n <- struct{}{}:
	default:
	}
}

// notifyAll notifies other instances of commits until l.notices is closed. NOTIFY takes a lock of the whole database
// cluster and holds the lock until its transaction has ended, fsync included. As part of commits, NOTIFY would make the
// commits of all logs in the cluster wait for each other. So each notification has a transaction of its own.
// Notifications are sent one at a time; all commits that are made meanwhile share the next notification. A failed
// notification is not repeated, because followers of the log also poll it once a second.
func (l *Log) notifyAll() {
	for range l.notices {
		position, _ := l.head.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := l.o.Pool.Exec(ctx, sqlNotify, l.channel(), strconv.FormatInt(int64(position), 10))
		cancel()
		if err != nil {
			l.o.Log.DebugContext(ctx, "notifying other instances of a commit failed", "error", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

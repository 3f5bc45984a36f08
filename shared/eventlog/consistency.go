package eventlog

import (
	"context"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

// sessions counts the sessions that the pool had opened when the positions of projections were read.
type sessions struct {
	mu     sync.Mutex
	opened int64
}

// ReadConsistently calls read, which calls WaitFor and then reads rows of the projection from the pool. It calls read
// again if the rows may be older than the position that WaitFor found. It returns the error of read.
//
// A crash of the server may undo what a projection has applied, and ends all sessions. A process that was frozen
// meanwhile remembers the position from before the crash, but reads the rows of after it, in a session that it has just
// opened. Rows that are read in a session which is older than the known position match that position.
func (l *Log) ReadConsistently(ctx context.Context, read func() error) error {
	for {
		opened, opening := l.renew()
		if err := read(); err != nil {
			return err
		}
		if !opening && l.o.Pool.Stat().NewConnsCount() == opened {
			return nil
		}
		if !retry.Sleep(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// renew forgets the positions of projections if the pool has opened a session since they were read. It returns the
// number of sessions opened so far, and whether one of them may still be opening.
func (l *Log) renew() (opened int64, opening bool) {
	// The order matters: a session that starts to open between these two lines is not counted as opened.
	opened = l.o.Pool.Stat().NewConnsCount()
	opening = l.o.Pool.Stat().ConstructingConns() > 0
	l.sessions.mu.Lock()
	defer l.sessions.mu.Unlock()
	if opened != l.sessions.opened {
		l.sessions.opened = opened
		l.applied.Forget()
	}
	return opened, opening
}

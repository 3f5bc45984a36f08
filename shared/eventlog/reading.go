package eventlog

import (
	"context"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/shared/sleep"
)

// sessions are those that the pool has opened, as far as the positions of projections are known under them.
type sessions struct {
	mu     sync.Mutex
	opened int64
}

// Reading calls read, which calls WaitFor and then reads rows of the projection from the pool. It calls read again where
// the rows may be older than WaitFor reported. It returns the error of read.
//
// A crash of the server may take back what a projection has applied, and ends all sessions. A process that stood still
// meanwhile knows the position of before, and reads rows of after, in a session that it has just opened. Rows of a session
// that is older than the knowledge of the position are as the position says.
func (l *Log) Reading(ctx context.Context, read func() error) error {
	for {
		opened, opening := l.renew()
		if err := read(); err != nil {
			return err
		}
		if !opening && l.o.Pool.Stat().NewConnsCount() == opened {
			return nil
		}
		if !sleep.For(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// renew forgets the positions of projections if the pool has opened a session since they were known. It returns how many
// sessions were opened so far, and whether one may be on its way that is among them.
func (l *Log) renew() (opened int64, opening bool) {
	// In this order: a session that begins to be opened in between is not among them.
	opened = l.o.Pool.Stat().NewConnsCount()
	opening = l.o.Pool.Stat().ConstructingConns() > 0
	l.sessions.mu.Lock()
	defer l.sessions.mu.Unlock()
	if opened != l.sessions.opened {
		l.sessions.opened = opened
		l.applied.forget()
	}
	return opened, opening
}

package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/retry"
)

// ReadConsistently calls the function read, which calls WaitFor and then reads rows of the projection from the pool. It
// calls read again if the rows may be older than the position that WaitFor found. It returns the first error of read,
// or the error of ctx if ctx ends between two calls.
//
// A crash of the server ends all its connections and may undo the last transactions of a projection. After the crash, a
// process may still have the earlier position in memory, while the rows that it reads lack those transactions. This
// happens if the process was frozen during the crash, and then opened a new connection to read the rows. If a
// connection was opened before the position was read, and still works, the server has not crashed since then. So the
// rows that are read on this connection are never older than that position.
func ReadConsistently(ctx context.Context, l *eventlog.Log, read func() error) error {
	pool := l.Options().Pool
	for {
		// The order matters: a connection that begins to open between these two lines is not counted in the variable
		// opened, so the comparison below notices it.
		opened := pool.Stat().NewConnsCount()
		opening := pool.Stat().ConstructingConns() > 0
		l.Applied().Renew(opened)
		if err := read(); err != nil {
			return err
		}
		if !opening && pool.Stat().NewConnsCount() == opened {
			return nil
		}
		if !retry.Sleep(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// WaitFor returns when some instance has applied the log to a projection up to a position, or with an error when ctx
// ends or the database fails. Call WaitFor in the function that is passed to ReadConsistently, and read the rows in the
// same function.
func WaitFor(ctx context.Context, l *eventlog.Log, projection string, position catalog.Position) error {
	here := l.Applied().Of(projection)
	if have, _ := here.Now(); have >= position {
		return nil
	}
	defer here.Wait()()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		have, moved := here.Now()
		if have >= position {
			return nil
		}
		retry.Await(ctx, moved, wait)
		if have, _ = here.Now(); have >= position {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for projection %s to reach %d, it is at %d: %w", projection, position, have, err)
		}
		// Another instance may apply the projection, so read the position from the database.
		era := here.Current()
		if err := l.Options().Pool.QueryRow(ctx, l.SQL(sqlPosition), projection).Scan(&have); err != nil {
			return fmt.Errorf("read the position of projection %s: %w", projection, eventlog.Unavailable(err))
		}
		here.ReachIn(era, have)
	}
}

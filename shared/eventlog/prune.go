package eventlog

import (
	"context"
	"fmt"
	"time"
)

// outcomesKept is longer than command topics remember, and than any client sends a command again.
const outcomesKept = 30 * 24 * time.Hour

// PruneOutcomes removes outcomes older than that, a few thousand at a time, and counts them.
func (l *Log) PruneOutcomes(ctx context.Context, olderThan time.Duration) (removed int64, err error) {
	before := l.o.Now().Add(-olderThan)
	for {
		done, err := l.o.Pool.Exec(ctx, l.sql.pruneOutcomes, before)
		if err != nil {
			return removed, fmt.Errorf("prune the outcomes of %s: %w", l.o.Owner, Away(err))
		}
		if done.RowsAffected() == 0 {
			return removed, nil
		}
		removed += done.RowsAffected()
	}
}

func (l *Log) pruneDaily(ctx context.Context) {
	for {
		removed, err := l.PruneOutcomes(ctx, outcomesKept)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.o.Log.WarnContext(ctx, "old outcomes stay until tomorrow", "error", err)
		case removed > 0:
			l.o.Log.InfoContext(ctx, "old outcomes removed", "count", removed)
		}
		if !sleep(ctx, 24*time.Hour) {
			return
		}
	}
}

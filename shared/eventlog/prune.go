package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

// OutcomesKept is how long outcomes are stored. It is longer than the retention of command topics, and longer than any
// client repeats a command.
const OutcomesKept = 30 * 24 * time.Hour

// PruneOutcomes removes outcomes that are older than a duration, 5,000 at a time. It returns the number of removed
// outcomes.
func (l *Log) PruneOutcomes(ctx context.Context, olderThan time.Duration) (removed int64, err error) {
	before := l.o.Now().Add(-olderThan)
	for newest := time.Unix(0, 0); ; {
		var count int64
		if err := l.o.Pool.QueryRow(ctx, l.sql.pruneOutcomes, planned, before, newest).Scan(&count, &newest); err != nil {
			return removed, fmt.Errorf("prune the outcomes of %s: %w", l.o.Owner, Unavailable(err))
		}
		if count == 0 {
			return removed, nil
		}
		removed += count
	}
}

func (l *Log) pruneDaily(ctx context.Context) {
	for {
		removed, err := l.PruneOutcomes(ctx, OutcomesKept)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.o.Log.WarnContext(ctx, "pruning outcomes failed, next attempt in 24h", "error", err)
		case removed > 0:
			l.o.Log.InfoContext(ctx, "old outcomes removed", "count", removed)
		}
		if !retry.Sleep(ctx, 24*time.Hour) {
			return
		}
	}
}

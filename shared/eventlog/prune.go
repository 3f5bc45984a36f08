package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
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

// SupersededKept is how long events of counters are stored after newer events of their streams have superseded them. It
// is longer than any topic stores events, so whoever reads the log because a topic lacks an event finds the event.
const SupersededKept = 31 * 24 * time.Hour

// PruneSuperseded deletes events of counters that are older than a duration and that newer events of their streams have
// superseded. The newest event of a stream stays, and contains the whole value. Events with a subject stay too, because
// a newer event of their stream may be about another subject. PruneSuperseded returns the number of deleted events. See
// docs/decisions/0015-superseded-counters.md.
func (l *Log) PruneSuperseded(ctx context.Context, olderThan time.Duration) (removed int64, err error) {
	before := l.o.Now().Add(-olderThan)
	at, position := time.Unix(0, 0), catalog.Position(0)
	for {
		var count int64
		err := l.o.Pool.QueryRow(ctx, l.SQL(sqlPruneSuperseded), planned, before, at, position).Scan(&count, &at, &position)
		if errors.Is(err, pgx.ErrNoRows) {
			return removed, nil
		} else if err != nil {
			return removed, fmt.Errorf("prune the superseded events of %s: %w", l.o.Owner, Unavailable(err))
		}
		removed += count
	}
}

func (l *Log) pruneDaily(ctx context.Context) {
	for {
		outcomes, err := l.PruneOutcomes(ctx, OutcomesKept)
		events, failed := l.PruneSuperseded(ctx, SupersededKept)
		switch err = errors.Join(err, failed); {
		case ctx.Err() != nil:
		case err != nil:
			l.o.Log.WarnContext(ctx, "pruning the log failed, next attempt in 24h", "error", err)
		case outcomes+events > 0:
			l.o.Log.InfoContext(ctx, "the log was pruned", "outcomes", outcomes, "superseded", events)
		}
		if !retry.Sleep(ctx, 24*time.Hour) {
			return
		}
	}
}

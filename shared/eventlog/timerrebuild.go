package eventlog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
)

const (
	sqlNewTimers = `DROP TABLE IF EXISTS owner.timers_rebuilt;
CREATE TABLE owner.timers_rebuilt (LIKE owner.timers INCLUDING ALL)`
	// A timer whose command has an outcome has been sent. Outcomes are pruned, so one that was due before those is taken
	// as sent as well.
	sqlSentTimers = `DELETE FROM owner.timers_rebuilt t USING owner.outcomes o
WHERE o.actor = $1 AND o.command_id = t.command_id`
	sqlOldTimers  = `DELETE FROM owner.timers_rebuilt WHERE due < to_timestamp($1::bigint / 1000000.0)`
	sqlSwapTimers = `DROP TABLE owner.timers; ALTER TABLE owner.timers_rebuilt RENAME TO timers;
ALTER INDEX owner.timers_rebuilt_pkey RENAME TO timers_pkey;
ALTER INDEX owner.timers_rebuilt_due_idx RENAME TO timers_by_due`
)

// RebuildTimers makes the timers anew of the log and its outcomes, and returns how many there are. Nothing is sent
// meanwhile. The log is read without its lock, which is held only for what was appended since and for the swap.
func (l *Log) RebuildTimers(ctx context.Context) (timers int64, err error) {
	for {
		got, err := l.timerTurn(ctx, 0, func(ctx context.Context) error {
			timers, err = l.rebuildTimers(ctx)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("rebuild the timers of %s: %w", l.o.Owner, Away(err))
		}
		if got {
			return timers, nil
		}
		if !sleep(ctx, timerPoll) {
			return 0, ctx.Err()
		}
	}
}

func (l *Log) rebuildTimers(ctx context.Context) (timers int64, err error) {
	in := func(s string) string { return l.in(strings.ReplaceAll(s, "owner.timers ", "owner.timers_rebuilt ")) }
	conn, err := l.o.Pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, l.in(sqlNewTimers), pgx.QueryExecModeSimpleProtocol); err != nil {
		return 0, err
	}
	position := int64(0)
	// follow applies the log up to its end.
	follow := func(q interface {
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	}) error {
		for {
			all, err := l.timerEvents(ctx, position)
			if err != nil || len(all) == 0 {
				return err
			}
			position = all[len(all)-1].Position
			changes, err := l.timerChanges(all)
			if err != nil {
				return err
			}
			b := &pgx.Batch{}
			if changes.queue(b, in); b.Len() == 0 {
				continue
			}
			if err := q.SendBatch(ctx, b).Close(); err != nil {
				return err
			}
		}
	}
	if err := follow(conn); err != nil {
		return 0, err
	}
	if _, err := conn.Exec(ctx, l.in(sqlSentTimers), catalog.TimerActor); err != nil {
		return 0, err
	}
	old := l.Clock().Add(-outcomesKept + 24*time.Hour).UnixMicro()
	if _, err := conn.Exec(ctx, l.in(sqlOldTimers), old); err != nil {
		return 0, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		hold := milliseconds(l.times.hold)
		if _, err := tx.Exec(ctx, sqlGuard, milliseconds(l.times.lock), hold, true); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlLock, lockKey(l.o.Owner, "append"), hold); err != nil {
			return err
		}
		if err := follow(tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, l.in(sqlSwapTimers), pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		return 0, err
	}
	return timers, conn.QueryRow(ctx, l.in(`SELECT count(*) FROM owner.timers`)).Scan(&timers)
}

// timerBatch is how many events a rebuild of the timers reads at a time.
const timerBatch = 5_000

func (l *Log) timerEvents(ctx context.Context, after int64) ([]logged, error) {
	found, err := l.o.Pool.Query(ctx, l.in(`SELECT `+columns+` FROM owner.events WHERE position > $1 ORDER BY position
LIMIT $2`), after, timerBatch)
	if err != nil {
		return nil, err
	}
	return l.scanAll(found)
}

// timerChanges is what events change of the timers in the end.
func (l *Log) timerChanges(all []logged) (*timerChanges, error) {
	last := map[timerKey]*timerRow{}
	for _, e := range all {
		declared, ok := l.o.Catalog.Event(e.Type)
		if !ok || !declared.SetsTimers() {
			continue
		}
		m, err := l.o.Catalog.Decode(e.Type, e.plain)
		if err != nil {
			return nil, &ownFault{err}
		}
		var d draft
		d.set, d.cancel, err = l.timersOf(declared, m, &entry{actor: e.Actor, cause: e.Cause})
		if err != nil {
			return nil, &ownFault{err}
		}
		eachTimer(e.Stream, e.Version, d, func(k timerKey, row *timerRow) { last[k] = row })
	}
	c := &timerChanges{}
	for k, row := range last {
		c.add(k, row)
	}
	return c, nil
}

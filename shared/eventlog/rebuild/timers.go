package rebuild

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/timer"
)

const (
	sqlNewTimers = `CREATE TABLE shadow.timers (LIKE owner.timers INCLUDING ALL);
ALTER INDEX shadow.timers_due_idx RENAME TO timers_by_due`
	// sqlTimerSpan returns the position of the last of the next $2 events above $1; null: there are no events.
	sqlTimerSpan = `SELECT max(position) FROM
  (SELECT position FROM owner.events WHERE position > $1 ORDER BY position LIMIT $2) s`
	sqlClearTimers = `DELETE FROM shadow.timers t USING unnest($1::text[], $2::text[]) AS n (stream, key)
WHERE t.stream = n.stream AND t.key = n.key`
	// sqlFillTimers inserts timers, except those that were sent. A timer was sent if its command has an outcome.
	// Because outcomes are pruned, a timer that was due before $8 also counts as sent.
	sqlFillTimers = `INSERT INTO shadow.timers (stream, key, generation, due, command, body, command_id)
SELECT n.* FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[], $6::bytea[], $7::text[])
  AS n (stream, key, generation, due, command, body, command_id)
WHERE n.due >= $8 AND NOT EXISTS
  (SELECT FROM owner.outcomes o WHERE o.actor = $9 AND o.command_id = n.command_id)`
)

const (
	// timerSpan is the maximum number of events of the log that one statement scans. timerPage is the maximum number of
	// events that the rebuild holds in memory; all of them set or cancel timers.
	timerSpan = 20_000
	timerPage = 500
)

// Timers rebuilds the timers from the log and its outcomes, in a table beside the live one, and compares the rows of
// the two tables. No timer fires meanwhile. Timers reads most of the log without the log's lock, and holds the lock
// only for the newest events and the swap. It calls the function progress as Projections calls Options.Progress; nil:
// not called. While another rebuild of the owner runs, Timers fails.
func Timers(ctx context.Context, l *eventlog.Log, progress func(Progress)) (rebuilt Result, err error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	s := &timerShadow{shadow: newShadow(l), types: l.TimerEvents()}
	s.rebuild.Progress, s.names, s.tables = progress, []string{eventlog.TimersName}, []string{"timers"}
	err = timer.Pause(ctx, l, func(ctx context.Context) (err error) {
		rebuilt, err = s.alone(ctx, s.run)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("rebuild the timers of %s: %w", s.o.Owner, eventlog.Unavailable(err))
	}
	s.o.Log.InfoContext(ctx, "timers rebuilt", "position", rebuilt.Position, "held", rebuilt.Held, "differ", rebuilt.Differ(),
		"left", rebuilt.Left)
	return rebuilt, nil
}

// timerShadow is a rebuild of the timers under way.
type timerShadow struct {
	*shadow
	types  []string  // types of the events that set or cancel timers
	oldest time.Time // timers that were due before this time count as sent
}

func (s *timerShadow) in(statement string) string {
	return s.log.SQL(strings.ReplaceAll(statement, "shadow.", pgx.Identifier{s.schema}.Sanitize()+"."))
}

func (s *timerShadow) run(ctx context.Context) (Result, error) {
	if err := s.emptySchema(ctx); err != nil {
		return Result{}, err
	}
	if _, err := s.keeper.Exec(ctx, s.in(sqlNewTimers), pgx.QueryExecModeSimpleProtocol); err != nil {
		return Result{}, err
	}
	s.oldest = s.log.Clock().Add(-eventlog.OutcomesKept + 24*time.Hour)
	if err := s.follow(ctx, 0); err != nil {
		return Result{}, err
	}
	if _, err := s.keeper.Exec(ctx, "ANALYZE "+qualified(s.schema, "timers")); err != nil {
		return Result{}, err
	}
	compare, err := s.o.Pool.Acquire(ctx)
	if err != nil {
		return Result{}, err
	}
	defer compare.Release()
	return s.swapped(ctx, func(ctx context.Context) (r Result, snapshot pgx.Tx, err error) {
		if err := s.follow(ctx, 0); err != nil {
			return r, nil, err
		}
		s.reportProgress("swap")
		r.Held, err = s.log.HoldLock(ctx, s.keeper, func(ctx context.Context) error {
			if err := s.follow(ctx, maxUnderLock); err != nil {
				return err
			}
			if snapshot, err = snapshotOf(ctx, compare); err != nil {
				return err
			}
			return pgx.BeginFunc(ctx, s.keeper, func(tx pgx.Tx) error { return s.replaceTables(ctx, tx) })
		})
		r.Projections, r.Position = s.names, s.position
		return r, snapshot, err
	})
}

// follow applies the log up to its end. If the parameter bound is not 0, and follow has applied more than this number
// of events that set or cancel timers, follow returns errBusy instead of applying another page.
func (s *timerShadow) follow(ctx context.Context, bound int) error {
	for passed := 0; ; {
		var end *catalog.Position
		if err := s.keeper.QueryRow(ctx, s.in(sqlTimerSpan), s.position, timerSpan).Scan(&end); err != nil {
			return err
		}
		if end == nil {
			return nil
		}
		for s.position < *end {
			if bound > 0 && passed > bound {
				return errBusy
			}
			applied, err := s.applyPage(ctx, *end)
			if err != nil {
				return err
			}
			passed += applied
			s.reportProgress("build")
		}
	}
}

// applyPage applies the next page of events that set or cancel timers, but no event above the position in the parameter
// end. The transaction does not wait for the disk: after a crash of the server, the rebuild fails anyway.
func (s *timerShadow) applyPage(ctx context.Context, end catalog.Position) (applied int, err error) {
	position := end
	err = pgx.BeginFunc(ctx, s.keeper, func(tx pgx.Tx) error {
		// As in commits, the settings enable_… make the planner choose index lookups, which suit large tables.
		_, err := tx.Exec(ctx, `SELECT set_config('synchronous_commit', 'off', true), set_config('enable_seqscan', 'off', true),
  set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
  set_config('idle_in_transaction_session_timeout', '5s', true)`)
		if err != nil {
			return err
		}
		c, events, last, err := s.log.ReadTimerChanges(ctx, tx, s.types, s.position, end, timerPage)
		if applied = events; err != nil || applied == 0 {
			return err
		}
		if applied == timerPage {
			position = last
		}
		b := &pgx.Batch{}
		b.Queue(s.in(sqlClearTimers), slices.Concat(c.Streams, c.GoneStreams), slices.Concat(c.Keys, c.GoneKeys))
		if len(c.Streams) > 0 {
			b.Queue(s.in(sqlFillTimers), c.Streams, c.Keys, c.Generations, c.Dues, c.Commands, c.Bodies, c.CommandIDs, s.oldest,
				catalog.TimerActor)
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if err == nil {
		s.position = position
	}
	return applied, err
}

package eventlog

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/retry"
)

// TimersName names the timers of a log among the projections that can be rebuilt.
const TimersName = "timers"

const (
	sqlNewTimers = `CREATE TABLE shadow.timers (LIKE owner.timers INCLUDING ALL);
ALTER INDEX shadow.timers_due_idx RENAME TO timers_by_due`
	// sqlTimerSpan returns the position at which a span of that many events ends; null: there are no events.
	sqlTimerSpan = `SELECT max(position) FROM
  (SELECT position FROM owner.events WHERE position > $1 ORDER BY position LIMIT $2) s`
	// sqlTimerEvents reads the events of a span that set or cancel timers.
	sqlTimerEvents = `SELECT ` + impersonal + ` FROM owner.events
WHERE position > $1 AND position <= $2 AND type = ANY ($3::text[]) ORDER BY position LIMIT $4`
	sqlClearTimers = `DELETE FROM shadow.timers t USING unnest($1::text[], $2::text[]) AS n (stream, key)
WHERE t.stream = n.stream AND t.key = n.key`
	// A timer whose command has an outcome was sent. Outcomes are pruned, so a timer that was due before the oldest of
	// them counts as sent as well.
	sqlFillTimers = `INSERT INTO shadow.timers (stream, key, generation, due, command, body, command_id)
SELECT n.* FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[], $6::bytea[], $7::text[])
  AS n (stream, key, generation, due, command, body, command_id)
WHERE n.due >= $8 AND NOT EXISTS
  (SELECT FROM owner.outcomes o WHERE o.actor = $9 AND o.command_id = n.command_id)`
)

const (
	// timerSpan is the number of events that a rebuild of the timers passes in one statement. timerPage is the number
	// of events with timers that it holds in memory.
	timerSpan = 20_000
	timerPage = 500
)

// HasTimers reports whether events of the log set timers.
func (l *Log) HasTimers() bool { return l.o.Catalog.HasTimers(l.o.Owner) }

// RebuildTimers rebuilds the timers from the log and its outcomes, beside the live ones, and compares both. No timer
// fires meanwhile. It reads most of the log without the lock, which it holds only for the newest events and the swap.
// It calls progress, which may be nil, after each step. It does not run at the same time as Rebuild.
func (l *Log) RebuildTimers(ctx context.Context, progress func(RebuildProgress)) (rebuilt Rebuilt, err error) {
	if progress == nil {
		progress = func(RebuildProgress) {}
	}
	s := &timerShadow{shadow: shadow{log: l, rebuild: Rebuild{Progress: progress}, schema: l.o.Owner + "_shadow",
		old: l.o.Owner + "_replaced", names: []string{TimersName}, tables: []string{"timers"}}}
	for _, name := range l.o.Catalog.EventNames() {
		if e, ok := l.o.Catalog.Event(name); ok && e.Owner == l.o.Owner && e.SetsTimers() {
			s.types = append(s.types, name)
		}
	}
	for got := false; !got && err == nil; {
		got, err = l.timerTurn(ctx, 0, func(ctx context.Context) (err error) {
			rebuilt, err = s.alone(ctx, s.run)
			return err
		})
		if err == nil && !got && !retry.Sleep(ctx, timerPollInterval) {
			err = ctx.Err()
		}
	}
	if err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild the timers of %s: %w", l.o.Owner, Unavailable(err))
	}
	l.o.Log.InfoContext(ctx, "timers rebuilt", "position", rebuilt.Position, "held", rebuilt.Held, "differ", rebuilt.Differ(),
		"left", rebuilt.Left)
	return rebuilt, nil
}

// timerShadow is a rebuild of the timers under way.
type timerShadow struct {
	shadow
	types  []string  // of the events that set or cancel timers
	oldest time.Time // timers that were due before this time count as sent
}

func (s *timerShadow) in(statement string) string {
	return s.log.SQL(strings.ReplaceAll(statement, "shadow.", pgx.Identifier{s.schema}.Sanitize()+"."))
}

func (s *timerShadow) run(ctx context.Context) (Rebuilt, error) {
	if err := s.emptySchema(ctx); err != nil {
		return Rebuilt{}, err
	}
	if _, err := s.keeper.Exec(ctx, s.in(sqlNewTimers), pgx.QueryExecModeSimpleProtocol); err != nil {
		return Rebuilt{}, err
	}
	s.oldest = s.log.Clock().Add(-outcomesKept + 24*time.Hour)
	if err := s.follow(ctx, 0); err != nil {
		return Rebuilt{}, err
	}
	if _, err := s.keeper.Exec(ctx, "ANALYZE "+qualified(s.schema, "timers")); err != nil {
		return Rebuilt{}, err
	}
	compare, err := s.log.o.Pool.Acquire(ctx)
	if err != nil {
		return Rebuilt{}, err
	}
	defer compare.Release()
	return s.swapped(ctx, func(ctx context.Context) (r Rebuilt, snapshot pgx.Tx, err error) {
		if err := s.follow(ctx, 0); err != nil {
			return r, nil, err
		}
		s.reportProgress("swap")
		r.Held, err = s.underLock(ctx, func(ctx context.Context) error {
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

// follow applies the log up to its end. If a bound is given, it returns errBusy after that many events.
func (s *timerShadow) follow(ctx context.Context, bound int) error {
	for passed := 0; ; {
		var end *int64
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

// applyPage applies a page of a span that ends at a position. The transaction does not wait for the disk: after a crash
// of the server the rebuild starts over.
func (s *timerShadow) applyPage(ctx context.Context, end int64) (applied int, err error) {
	position := end
	err = pgx.BeginFunc(ctx, s.keeper, func(tx pgx.Tx) error {
		// The settings force plans for large tables, as commits do.
		_, err := tx.Exec(ctx, `SELECT set_config('synchronous_commit', 'off', true), set_config('enable_seqscan', 'off', true),
  set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
  set_config('idle_in_transaction_session_timeout', '5s', true)`)
		if err != nil {
			return err
		}
		found, err := tx.Query(ctx, s.in(sqlTimerEvents), planned, s.position, end, s.types, timerPage)
		if err != nil {
			return err
		}
		events, err := s.log.scanAll(found)
		if applied = len(events); err != nil || applied == 0 {
			return err
		}
		if applied == timerPage {
			position = events[applied-1].Position
		}
		c, err := s.log.timerChanges(events)
		if err != nil {
			return err
		}
		b := &pgx.Batch{}
		b.Queue(s.in(sqlClearTimers), slices.Concat(c.streams, c.goneStreams), slices.Concat(c.keys, c.goneKeys))
		if len(c.streams) > 0 {
			b.Queue(s.in(sqlFillTimers), c.streams, c.keys, c.generations, c.dues, c.commands, c.bodies, c.ids, s.oldest,
				catalog.TimerActor)
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if err == nil {
		s.position = position
	}
	return applied, err
}

// timerChanges returns the final changes that events make to the timers.
func (l *Log) timerChanges(all []Logged) (*timerChanges, error) {
	last := map[timerKey]*timerRow{}
	for _, e := range all {
		declared, ok := l.o.Catalog.Event(e.Type)
		if !ok || !declared.SetsTimers() {
			continue
		}
		m, err := l.o.Catalog.Decode(e.Type, e.plain)
		if err != nil {
			return nil, pgerror.Data(err)
		}
		var d draft
		d.set, d.cancel, err = l.timersOf(declared, m, &entry{actor: e.Actor, cause: e.Cause})
		if err != nil {
			return nil, pgerror.Data(err)
		}
		eachTimer(e.Stream, e.Version, e.Time, d, func(k timerKey, row *timerRow) { last[k] = row })
	}
	c := &timerChanges{}
	for k, row := range last {
		c.add(k, row)
	}
	return c, nil
}

// Package rebuild rebuilds the tables that a service derives from its log: those of its projections, and the table of
// timers. It builds new tables beside the live ones while the log is written and read, and then replaces the live
// tables by the new ones under the log's lock. Afterwards it compares the old rows with the new ones.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Options configure a rebuild of projections.
type Options struct {
	Projections []projection.Applier
	// Tables are the tables of the projections. Nil: all tables of the owner's migrations.
	Tables []string
	// Progress is called after each batch of events, before each attempt to swap the tables, and before the comparison.
	// Nil: not called.
	Progress func(Progress)
}

// Progress is the progress of a rebuild.
type Progress struct {
	Step     string // "build", "swap" or "compare"
	Position catalog.Position
	Head     catalog.Position // of the log
}

// Result is the result of a rebuild.
type Result struct {
	Projections []string
	Position    catalog.Position // position as of which the tables were swapped and compared
	Behind      catalog.Position // position of the old rows at the swap, if it was below Position; else 0
	Held        time.Duration    // how long the log's lock was held; nothing could be appended meanwhile
	Tables      []TableDifference
	Left        string // problems after the swap, in the comparison or the cleanup; empty: none
}

// Differ returns the number of rows that differ.
func (r Result) Differ() (rows int64) {
	for _, t := range r.Tables {
		rows += t.Differ
	}
	return rows
}

const (
	maxBatch     = 500              // maximum number of events that are read at a time
	swapTries    = 20               // attempts to swap the tables
	maxUnderLock = 2 * maxBatch     // a swap fails if more events than this have to be applied under the log's lock
	liveWithin   = 10 * time.Second // maximum wait, before the swap, until the live rows have caught up
)

// Projections rebuilds projections while they are read and followed. It runs the owner's migrations in a new schema,
// the shadow, and applies the log to the tables there. Then, under the log's lock, it applies the remaining events, and
// replaces the live tables by those of the shadow. After the lock is released, Projections compares the old rows with
// the new ones, as of the swap. The migrations must name their tables without a schema, and create only tables with
// their indexes and sequences.
//
// Grants on the old tables are lost. One rebuild of an owner runs at a time; a second one fails.
func Projections(ctx context.Context, l *eventlog.Log, o Options) (Result, error) {
	s := newShadow(l)
	s.rebuild = o
	if s.rebuild.Progress == nil {
		s.rebuild.Progress = func(Progress) {}
	}
	for _, p := range o.Projections {
		s.names = append(s.names, p.Name())
	}
	slices.Sort(s.names)
	rebuilt, err := s.alone(ctx, s.run)
	if err != nil {
		return Result{}, fmt.Errorf("rebuild %s of %s: %w", strings.Join(s.names, ", "), s.o.Owner, eventlog.Unavailable(err))
	}
	s.o.Log.InfoContext(ctx, "projections rebuilt", "projections", s.names, "position", rebuilt.Position,
		"held", rebuilt.Held, "differ", rebuilt.Differ(), "left", rebuilt.Left)
	return rebuilt, nil
}

// shadow is a rebuild under way.
type shadow struct {
	log     *eventlog.Log
	o       eventlog.Options // of the log
	rebuild Options
	names   []string // names of the projections
	schema  string
	old     string    // schema to which the replaced tables are moved
	keeper  *pgx.Conn // connection of the rebuild; its database session holds the locks
	tables  []string

	position catalog.Position // position up to which the shadow is built
}

func newShadow(l *eventlog.Log) *shadow {
	o := l.Options()
	return &shadow{log: l, o: o, schema: o.Owner + "_shadow", old: o.Owner + "_replaced"}
}

// alone calls f while no other rebuild of the owner runs, and cleans up afterwards.
func (s *shadow) alone(ctx context.Context, f func(context.Context) (Result, error)) (_ Result, err error) {
	if s.keeper, err = pgx.ConnectConfig(ctx, s.o.Pool.Config().ConnConfig); err != nil {
		return Result{}, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		// Release the lock explicitly. The server may notice the closed connection late, and the next rebuild would be
		// refused until then.
		_, _ = s.keeper.Exec(ctx, "SELECT pg_advisory_unlock_all()")
		_ = s.keeper.Close(ctx)
	}()
	var alone bool
	err = s.keeper.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", s.log.LockKey("rebuild")).Scan(&alone)
	if err == nil && !alone {
		err = pgerror.Data(errors.New("another rebuild is under way"))
	}
	if err != nil {
		return Result{}, err
	}
	rebuilt, err := f(ctx)
	if err != nil {
		return Result{}, errors.Join(err, s.dropShadow(ctx))
	}
	if err := errors.Join(s.dropOld(context.WithoutCancel(ctx)), s.dropShadow(ctx)); err != nil {
		rebuilt.Left = strings.TrimPrefix(rebuilt.Left+"; "+err.Error(), "; ")
	}
	return rebuilt, nil
}

func (s *shadow) run(ctx context.Context) (Result, error) {
	if len(s.rebuild.Projections) == 0 || s.o.Migrations == nil {
		return Result{}, pgerror.Data(errors.New("no projection with tables"))
	}
	if err := s.prepare(ctx); err != nil {
		return Result{}, err
	}
	return s.build(ctx)
}

// build applies the log to the shadow until it is near the log's end, swaps the tables, and compares the rows.
func (s *shadow) build(ctx context.Context) (Result, error) {
	compare, err := s.o.Pool.Acquire(ctx)
	if err != nil {
		return Result{}, err
	}
	defer compare.Release()
	if err := s.follow(ctx); err != nil {
		return Result{}, err
	}
	for _, table := range s.tables {
		if _, err := s.keeper.Exec(ctx, "ANALYZE "+qualified(s.schema, table)); err != nil {
			return Result{}, err
		}
	}
	if err := s.awaitLive(ctx, s.position, liveWithin); err != nil {
		return Result{}, err
	}
	return s.swapped(ctx, func(ctx context.Context) (Result, pgx.Tx, error) {
		if err := s.follow(ctx); err != nil {
			return Result{}, nil, err
		}
		s.reportProgress("swap")
		return s.swap(ctx, compare)
	})
}

// swapped calls the function swap until it succeeds, and then compares the rows. It gives up after swapTries attempts,
// or after an error that another attempt cannot fix.
func (s *shadow) swapped(ctx context.Context, swap func(context.Context) (Result, pgx.Tx, error)) (Result, error) {
	var delay retry.Backoff
	for try := 1; ; try++ {
		rebuilt, snapshot, err := swap(ctx)
		if err == nil {
			s.reportProgress("compare")
			if rebuilt.Tables, err = s.compare(ctx, snapshot); err != nil {
				// If an error were returned, the caller would assume that nothing has changed.
				rebuilt.Left = fmt.Sprintf("the new rows have taken over, but could not be compared with the old ones: %v", err)
			}
			_ = snapshot.Rollback(context.WithoutCancel(ctx)) // a rollback loses nothing, because the transaction has only read
			return rebuilt, nil
		}
		if snapshot != nil {
			_ = snapshot.Rollback(context.WithoutCancel(ctx))
		}
		if !isTransient(err) || try == swapTries || s.keeper.IsClosed() || !delay.Wait(ctx) {
			return Result{}, fmt.Errorf("swap: %w", err)
		}
		s.o.Log.InfoContext(ctx, "swapping the rebuilt tables failed, retrying", "error", err)
	}
}

func (s *shadow) reportProgress(step string) {
	head, _ := s.log.Seen()
	s.rebuild.Progress(Progress{Step: step, Position: s.position, Head: max(head, s.position)})
}

// errBusy means that the log has grown by more events than can be applied under its lock.
var errBusy = errors.New("the log is busy")

// isTransient reports whether the swap may succeed later: the log was busy, another connection had locked a table
// (55P03, lock_not_available), or the server ended this attempt because of a deadlock (40P01, deadlock_detected).
func isTransient(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, errBusy) || errors.As(err, &pg) && slices.Contains([]string{"55P03", "40P01"}, pg.Code)
}

// emptySchema creates an empty shadow schema, after it has dropped the schemas of an earlier rebuild.
func (s *shadow) emptySchema(ctx context.Context) error {
	if err := errors.Join(s.dropShadow(ctx), s.dropOld(ctx)); err != nil {
		return fmt.Errorf("tidy up after an earlier rebuild: %w", err)
	}
	_, err := s.keeper.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{s.schema}.Sanitize())
	return err
}

// prepare creates and migrates the shadow schema, and lists its tables.
func (s *shadow) prepare(ctx context.Context) error {
	if err := s.emptySchema(ctx); err != nil {
		return err
	}
	if err := s.log.MigrateInto(ctx, s.schema); err != nil {
		return fmt.Errorf("migrate the shadow: %w", err)
	}
	return s.survey(ctx)
}

const (
	// sqlOthers lists the objects of a schema that a swap would not move: views, foreign tables, composite types,
	// sequences that do not belong to a column, functions, enums and domains.
	sqlOthers = `SELECT c.relname FROM pg_class c
WHERE c.relnamespace = $1::regnamespace AND (c.relkind IN ('v', 'm', 'f', 'c') OR c.relkind = 'S' AND NOT EXISTS (
  SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refobjsubid > 0))
UNION ALL SELECT p.proname FROM pg_proc p WHERE p.pronamespace = $1::regnamespace
UNION ALL SELECT t.typname FROM pg_type t WHERE t.typnamespace = $1::regnamespace AND t.typtype IN ('e', 'd')`
	sqlTables = `SELECT c.relname FROM pg_class c WHERE c.relnamespace = $1::regnamespace AND c.relkind IN ('r', 'p')
  AND c.relname <> 'owner_migrations' ORDER BY 1`
	// sqlCrossing lists the foreign keys between the tables of the projections and other tables. After a swap, such a
	// key would refer to a table that was replaced or that has remained in the shadow.
	sqlCrossing = `SELECT c.conname
FROM pg_constraint c JOIN pg_class a ON a.oid = c.conrelid JOIN pg_class b ON b.oid = c.confrelid
WHERE c.contype = 'f' AND a.relnamespace = $1::regnamespace
  AND (b.relnamespace <> a.relnamespace OR (a.relname = ANY ($2)) <> (b.relname = ANY ($2)))`
)

// survey lists the tables to rebuild, and checks that those of the shadow can replace the live ones.
func (s *shadow) survey(ctx context.Context) error {
	schema := pgx.Identifier{s.schema}.Sanitize()
	others, err := s.texts(ctx, sqlOthers, schema)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return pgerror.Data(fmt.Errorf("the migrations create other objects than tables, which cannot be swapped: "+
			"%s", strings.Join(others, ", ")))
	}
	all, err := s.texts(ctx, sqlTables, schema)
	if err != nil {
		return err
	}
	if s.tables = s.rebuild.Tables; s.tables == nil {
		s.tables = all
	}
	for _, table := range s.tables {
		if !slices.Contains(all, table) {
			return pgerror.Data(fmt.Errorf("the migrations do not create a table %s", table))
		}
	}
	crossing, err := s.texts(ctx, sqlCrossing, schema, s.tables)
	if err == nil && len(crossing) > 0 {
		err = pgerror.Data(fmt.Errorf("tables of these projections and others refer to each other: %s",
			strings.Join(crossing, ", ")))
	}
	return err
}

func (s *shadow) texts(ctx context.Context, statement string, args ...any) ([]string, error) {
	found, err := s.keeper.Query(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, pgx.RowTo[string])
}

// follow applies the log to the shadow up to the log's end.
func (s *shadow) follow(ctx context.Context) error {
	for {
		applied, err := s.applyNext(ctx)
		if err != nil {
			return err
		}
		s.reportProgress("build")
		if applied < maxBatch {
			return nil
		}
	}
}

// applyNext applies the next batch to the shadow. The transaction does not wait for the disk: after a crash of the
// server, the rebuild fails anyway.
func (s *shadow) applyNext(ctx context.Context) (applied int, err error) {
	var last catalog.Position
	err = pgx.BeginFunc(ctx, s.keeper, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true), set_config('synchronous_commit', 'off', true),
  set_config('idle_in_transaction_session_timeout', '5s', true)`, pgx.Identifier{s.schema}.Sanitize())
		if err != nil {
			return err
		}
		var events []eventlog.Logged
		b := &pgx.Batch{}
		s.log.QueueRead(b, s.position, maxBatch, &events)
		err = tx.SendBatch(ctx, b).Close()
		if applied = len(events); err != nil || applied == 0 {
			return err
		}
		last = events[applied-1].Position
		for _, p := range s.rebuild.Projections {
			if err := p.Apply(ctx, tx, eventlog.Events(events)); err != nil {
				return fmt.Errorf("apply %d to %d to %s: %w", events[0].Position, last, p.Name(), err)
			}
		}
		return nil
	})
	if err == nil && applied > 0 {
		s.position = last
	}
	return applied, err
}

// awaitLive waits until the live rows have reached a position, whichever instance follows the log. It also returns nil
// once the timeout has passed.
func (s *shadow) awaitLive(ctx context.Context, position catalog.Position, timeout time.Duration) error {
	for end := time.Now().Add(timeout); ; {
		at, err := s.live(ctx)
		if err != nil || at >= position || time.Now().After(end) {
			return err
		}
		if !retry.Sleep(ctx, 2*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// live returns the position of the live rows, which is the lowest position of the projections.
func (s *shadow) live(ctx context.Context) (position catalog.Position, err error) {
	err = s.keeper.QueryRow(ctx, s.log.SQL(`SELECT coalesce(min(coalesce(p.position, 0)), 0)
FROM unnest($1::text[]) AS n (name) LEFT JOIN owner.projections p USING (name)`), s.names).Scan(&position)
	return position, err
}

// swap replaces the live tables. It takes the log's lock, so that nothing is appended and the live rows stop changing
// once they have caught up. Under the lock, it applies the remaining events to the shadow and swaps the tables. The
// returned snapshot sees the old rows and the new ones as of the same position, unless the old rows are behind (see
// Result.Behind).
func (s *shadow) swap(ctx context.Context, compare *pgxpool.Conn) (r Result, snapshot pgx.Tx, err error) {
	var live catalog.Position
	r.Held, err = s.log.HoldLock(ctx, s.keeper, func(ctx context.Context) error {
		if err := s.finish(ctx); err != nil {
			return err
		}
		if err := s.awaitLive(ctx, s.position, eventlog.MaxHold/4); err != nil {
			return err
		}
		if live, err = s.live(ctx); err != nil {
			return err
		}
		if snapshot, err = snapshotOf(ctx, compare); err != nil {
			return err
		}
		return s.takeOver(ctx)
	})
	if err != nil {
		return r, snapshot, err
	}
	for _, name := range s.names {
		s.log.Applied().Of(name).Reach(s.position)
	}
	r.Projections, r.Position = s.names, s.position
	if live < s.position {
		r.Behind = live
	}
	return r, snapshot, nil
}

// snapshotOf begins a transaction that sees what is committed now.
func snapshotOf(ctx context.Context, conn *pgxpool.Conn) (pgx.Tx, error) {
	snapshot, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	_, err = snapshot.Exec(ctx, "SELECT 1")
	return snapshot, err
}

// finish applies the remaining events of the log to the shadow, while nothing can be appended.
func (s *shadow) finish(ctx context.Context) error {
	head, err := s.log.ReadHead(ctx, s.keeper)
	if err != nil {
		return err
	}
	for done := 0; s.position < head.Position; {
		if done > maxUnderLock {
			return errBusy
		}
		applied, err := s.applyNext(ctx)
		if err != nil {
			return err
		}
		if applied == 0 {
			s.position = head.Position // the floor of an incarnation that has no event yet
		}
		done += applied
	}
	return nil
}

// takeOver replaces the live tables by the shadow's tables.
func (s *shadow) takeOver(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.keeper, func(tx pgx.Tx) error {
		// Lock the rows of the projections. Once they are locked, a follower has ended its batch, and its next batch
		// waits until this transaction has ended.
		if _, err := tx.Exec(ctx, s.log.SQL(`INSERT INTO owner.projections (name, position)
SELECT name, 0 FROM unnest($1::text[]) AS n (name) ORDER BY 1 ON CONFLICT DO NOTHING`), s.names); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, s.log.SQL(`SELECT FROM owner.projections
WHERE name = ANY ($1) ORDER BY name FOR UPDATE`), s.names); err != nil {
			return err
		}
		var same bool
		err := tx.QueryRow(ctx, s.log.SQL(`SELECT (SELECT max(version_id) FROM owner.owner_migrations) = `)+
			`(SELECT max(version_id) FROM `+qualified(s.schema, "owner_migrations")+`)`).Scan(&same)
		if err != nil {
			return err
		}
		if !same {
			return pgerror.Data(errors.New("another release has migrated the tables meanwhile; rebuild them with that release"))
		}
		if err := s.replaceTables(ctx, tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, s.log.SQL(`UPDATE owner.projections SET position = $2 WHERE name = ANY ($1)`), s.names,
			s.position)
		return err
	})
}

// replaceTables moves the live tables to the schema of replaced tables, and the shadow's tables to the owner's schema.
func (s *shadow) replaceTables(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{s.old}.Sanitize()); err != nil {
		return err
	}
	for _, table := range s.tables {
		if err := move(ctx, tx, s.o.Owner, table, s.old); err != nil {
			return err
		}
	}
	for _, table := range s.tables {
		if err := move(ctx, tx, s.schema, table, s.o.Owner); err != nil {
			return err
		}
	}
	return nil
}

func move(ctx context.Context, tx pgx.Tx, schema, table, to string) error {
	_, err := tx.Exec(ctx, "ALTER TABLE "+qualified(schema, table)+" SET SCHEMA "+pgx.Identifier{to}.Sanitize())
	return err
}

func qualified(schema, table string) string { return pgx.Identifier{schema, table}.Sanitize() }

func (s *shadow) dropShadow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := s.o.Pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+pgx.Identifier{s.schema}.Sanitize()+" CASCADE")
	return err
}

// dropOld drops the replaced tables, unless another object, such as a view, depends on them.
func (s *shadow) dropOld(ctx context.Context) error {
	found, err := s.o.Pool.Query(ctx, `SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')`, s.old)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for i, table := range tables {
		tables[i] = qualified(s.old, table)
	}
	if len(tables) > 0 {
		if _, err := s.o.Pool.Exec(ctx, "DROP TABLE "+strings.Join(tables, ", ")); err != nil {
			return fmt.Errorf("the replaced tables stay in the schema %s: %w", s.old, err)
		}
	}
	_, err = s.o.Pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+pgx.Identifier{s.old}.Sanitize())
	return err
}

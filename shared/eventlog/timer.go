package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/retry"
)

type timerKey struct{ stream, key string }

// timerRow is a timer that was set. Its generation is the version of the event that set it.
type timerRow struct {
	generation int64
	due        time.Time
	command    string
	body       []byte
}

// Timer is a due timer: a command for its stream.
type Timer struct {
	TimerKey
	Due     time.Time
	Command string
	Body    []byte
}

// timerNames is the namespace of the ids of timers' commands.
var timerNames = uuid.MustParse("6d0a4f2e-51f4-5b0c-9a3c-0f6f1a7a2c55")

// CommandID returns the id of the timer's command. It is derived from the timer, so that the command has one outcome
// however often it is sent.
func (k TimerKey) CommandID() string {
	return uuid.NewSHA1(timerNames, fmt.Appendf(nil, "%s\x00%s\x00%d", k.Stream, k.Key, k.Generation)).String()
}

// timersOf encodes the timers that an event sets, without their generation.
func (l *Log) timersOf(declared *catalog.Event, m proto.Message, e *entry) (set []timerRowOf, cancelled []string, err error) {
	if !declared.SetsTimers() {
		return nil, nil, nil
	}
	timers, cancelled := l.o.Catalog.Timers(declared, m, catalog.Origin{Actor: e.actor, CommandID: e.cause})
	for _, t := range timers {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(t.Body)
		if err != nil {
			return nil, nil, fmt.Errorf("encode %s of the timer %s: %w", t.Command, t.Key, err)
		}
		set = append(set, timerRowOf{t.Key, timerRow{due: t.Due, command: t.Command, body: body}})
	}
	return set, cancelled, nil
}

// timerRowOf is a timer with its key, as an event sets it.
type timerRowOf struct {
	key string
	timerRow
}

// eachTimer calls f for each timer that an event sets or cancels (nil). A timer for a time before the event is due at
// the event's time. Timers fire in the order in which they are due, so a timer that is repeatedly set for the past
// waits behind those of others.
func eachTimer(stream string, version int64, at time.Time, d draft, f func(timerKey, *timerRow)) {
	for _, key := range d.cancel {
		f(timerKey{stream, key}, nil)
	}
	for _, t := range d.set {
		row := t.timerRow
		row.generation = version
		if row.due.Before(at) {
			row.due = at
		}
		f(timerKey{stream, t.key}, &row)
	}
}

// timer records that a timer is set, or gone (nil).
func (a *admission) timer(k timerKey, row *timerRow) {
	a.timers[k] = row
	if a.rows.timers == nil {
		a.rows.timers = map[timerKey]*timerRow{}
	}
	a.rows.timers[k] = row
}

const (
	sqlSetTimers = `INSERT INTO owner.timers (stream, key, generation, due, command, body, command_id)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[], $6::bytea[], $7::text[])
ON CONFLICT (stream, key) DO UPDATE SET generation = excluded.generation, due = excluded.due, command = excluded.command,
  body = excluded.body, command_id = excluded.command_id`
	sqlDropTimers = `DELETE FROM owner.timers t USING unnest($1::text[], $2::text[]) AS n (stream, key)
WHERE t.stream = n.stream AND t.key = n.key`

	sqlNextTimer = `SELECT coalesce((extract(epoch FROM (SELECT due FROM owner.timers ORDER BY due LIMIT 1)) * 1000000)::bigint,
  0), ` + clock
	sqlDueTimers = `SELECT stream, key, generation, due, command, body FROM owner.timers
WHERE due <= to_timestamp($1::bigint / 1000000.0) ORDER BY due LIMIT $2`
)

// TimerChanges are the rows of timers that events set and remove, by column.
type TimerChanges struct {
	Streams, Keys, Commands []string
	CommandIDs              []string
	Generations             []int64
	Dues                    []time.Time
	Bodies                  [][]byte

	GoneStreams, GoneKeys []string
}

func (c *TimerChanges) add(k timerKey, row *timerRow) {
	if row == nil {
		c.GoneStreams, c.GoneKeys = append(c.GoneStreams, k.stream), append(c.GoneKeys, k.key)
		return
	}
	c.Streams, c.Keys, c.Commands = append(c.Streams, k.stream), append(c.Keys, k.key), append(c.Commands, row.command)
	c.Generations, c.Dues = append(c.Generations, row.generation), append(c.Dues, row.due)
	c.Bodies = append(c.Bodies, row.body)
	c.CommandIDs = append(c.CommandIDs, TimerKey{k.stream, k.key, row.generation}.CommandID())
}

func (c *TimerChanges) queue(b *pgx.Batch, in func(string) string) {
	if len(c.GoneStreams) > 0 {
		b.Queue(in(sqlDropTimers), c.GoneStreams, c.GoneKeys)
	}
	if len(c.Streams) > 0 {
		b.Queue(in(sqlSetTimers), c.Streams, c.Keys, c.Generations, c.Dues, c.Commands, c.Bodies, c.CommandIDs)
	}
}

const (
	sqlDropTimer = `DELETE FROM owner.timers WHERE stream = $1 AND key = $2 AND generation = $3`

	// timerPollInterval is how soon a timer is noticed that is due before all others, and the minimum interval between
	// two checks.
	timerPollInterval = 50 * time.Millisecond
	// maxTimerTurn is how long the server waits for a sign of life of the instance whose turn it is, before another
	// instance takes over.
	maxTimerTurn = 10 * time.Second
)

// AwaitTimer waits until a timer is due, and returns the log's clock then.
func (l *Log) AwaitTimer(ctx context.Context) (now time.Time, err error) {
	for ctx.Err() == nil {
		_, moved := l.head.Now()
		due, now, err := l.nextTimer(ctx)
		if err != nil {
			return now, err
		}
		left := pollInterval
		if !due.IsZero() {
			left = min(left, due.Sub(now))
		}
		if left <= 0 {
			return now, nil
		}
		retry.Await(ctx, moved, left)
		retry.Sleep(ctx, timerPollInterval)
	}
	return now, ctx.Err()
}

// TimerTurn calls f while no other instance sends the commands of timers. If another one does, TimerTurn does nothing
// and returns false. No statement waits and no transaction is open meanwhile.
func (l *Log) TimerTurn(ctx context.Context, f func(context.Context) error) (got bool, err error) {
	return l.timerTurn(ctx, maxTimerTurn, f)
}

func (l *Log) timerTurn(ctx context.Context, silence time.Duration, f func(context.Context) error) (got bool, err error) {
	conn, err := l.o.Pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("take the turn of the timers of %s: %w", l.o.Owner, Unavailable(err))
	}
	defer conn.Release()
	key := lockKey(l.o.Owner, "timers")
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&got); err != nil || !got {
		return false, Unavailable(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, undone := conn.Exec(ctx, "SELECT pg_advisory_unlock($1), set_config('idle_session_timeout', '0', false)", key)
		if undone != nil {
			_ = conn.Conn().Close(ctx) // which releases the lock
		}
	}()
	// A process that freezes loses its turn.
	_, err = conn.Exec(ctx, "SELECT set_config('idle_session_timeout', $1, false)", milliseconds(silence))
	if err != nil {
		return true, Unavailable(err)
	}
	return true, f(ctx)
}

// DropTimer removes a timer whose command has an outcome already.
func (l *Log) DropTimer(ctx context.Context, k TimerKey) error {
	if _, err := l.o.Pool.Exec(ctx, l.SQL(sqlDropTimer), k.Stream, k.Key, k.Generation); err != nil {
		return fmt.Errorf("drop the timer %s of %s: %w", k.Key, k.Stream, Unavailable(err))
	}
	return nil
}

// nextTimer returns when the next timer is due (zero: there is no timer), and the log's clock.
func (l *Log) nextTimer(ctx context.Context) (due, now time.Time, err error) {
	var dueAt, nowAt int64
	if err := l.o.Pool.QueryRow(ctx, l.SQL(sqlNextTimer)).Scan(&dueAt, &nowAt); err != nil {
		return due, now, fmt.Errorf("read the next timer of %s: %w", l.o.Owner, Unavailable(err))
	}
	if dueAt != 0 {
		due = micros(dueAt)
	}
	return due, micros(nowAt), nil
}

// DueTimers returns up to limit timers that are due at a time, the oldest first.
func (l *Log) DueTimers(ctx context.Context, at time.Time, limit int) ([]Timer, error) {
	found, err := l.o.Pool.Query(ctx, l.SQL(sqlDueTimers), at.UnixMicro(), limit)
	if err == nil {
		var all []Timer
		all, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (t Timer, err error) {
			err = row.Scan(&t.Stream, &t.Key, &t.Generation, &t.Due, &t.Command, &t.Body)
			return t, err
		})
		if err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read the timers of %s that are due: %w", l.o.Owner, Unavailable(err))
}

// TimersName names the timers of a log among the projections that can be rebuilt.
const TimersName = "timers"

// HasTimers reports whether events of the log set timers.
func (l *Log) HasTimers() bool { return l.o.Catalog.HasTimers(l.o.Owner) }

// TimerEvents returns the types of the log's events that set or cancel timers.
func (l *Log) TimerEvents() (types []string) {
	for _, name := range l.o.Catalog.EventNames() {
		if e, ok := l.o.Catalog.Event(name); ok && e.Owner == l.o.Owner && e.SetsTimers() {
			types = append(types, name)
		}
	}
	return types
}

const (
	// sqlTimerEvents reads the events of a span that set or cancel timers.
	sqlTimerEvents = `SELECT ` + impersonal + ` FROM owner.events
WHERE position > $1 AND position <= $2 AND type = ANY ($3::text[]) ORDER BY position LIMIT $4`
)

// ReadTimerChanges reads up to limit events of some types above a position and up to another, and returns what they
// finally change of the timers, the number of events, and the position of the last of them.
func (l *Log) ReadTimerChanges(ctx context.Context, tx pgx.Tx, types []string, after, until int64, limit int) (
	c *TimerChanges, events int, last int64, err error) {
	found, err := tx.Query(ctx, l.SQL(sqlTimerEvents), planned, after, until, types, limit)
	if err != nil {
		return nil, 0, 0, err
	}
	all, err := l.scanAll(found)
	if err != nil || len(all) == 0 {
		return &TimerChanges{}, 0, 0, err
	}
	c, err = l.finalTimers(all)
	return c, len(all), all[len(all)-1].Position, err
}

// finalTimers returns the final changes that events make to the timers.
func (l *Log) finalTimers(all []Logged) (*TimerChanges, error) {
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
	c := &TimerChanges{}
	for k, row := range last {
		c.add(k, row)
	}
	return c, nil
}

// PauseTimers calls f while no instance sends the commands of timers, for as long as f takes. It waits for an instance
// that sends some.
func (l *Log) PauseTimers(ctx context.Context, f func(context.Context) error) error {
	for {
		got, err := l.timerTurn(ctx, 0, f)
		if err != nil || got {
			return err
		}
		if !retry.Sleep(ctx, timerPollInterval) {
			return ctx.Err()
		}
	}
}

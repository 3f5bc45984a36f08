// Package timer reads the due timers of a log, and lets one instance at a time send their commands. Commits of package
// eventlog set the timers that events declare. The commit that stores the outcome of a timer's command removes the
// timer.
package timer

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Timer is a due timer: a command for its stream.
type Timer struct {
	eventlog.TimerKey
	Due     time.Time
	Command string
	Body    []byte
}

const (
	sqlNext = `SELECT coalesce((extract(epoch FROM (SELECT due FROM owner.timers ORDER BY due LIMIT 1)) * 1000000)::bigint,
  0), ` + eventlog.ClockSQL
	sqlDue = `SELECT stream, key, generation, due, command, body FROM owner.timers
WHERE due <= to_timestamp($1::bigint / 1000000.0) ORDER BY due LIMIT $2`
	sqlDrop = `DELETE FROM owner.timers WHERE stream = $1 AND key = $2 AND generation = $3`
)

const (
	// seenInterval bounds how long Await waits for a notification that the log has moved. After this time, Await reads the
	// timers even without a notification.
	seenInterval = time.Second
	// pollInterval is the minimum interval between two reads of the timers, and between two attempts of Pause. A new
	// timer that is due before all others is usually noticed within about this time.
	pollInterval = 50 * time.Millisecond
	// maxTurn bounds a turn (see Turn). The database session that holds the turn's lock is idle during the turn. After
	// maxTurn the server ends the session, and another instance can take over.
	maxTurn = 10 * time.Second
)

// Await waits until a timer is due, and returns the time of the log's clock.
func Await(ctx context.Context, l *eventlog.Log) (now time.Time, err error) {
	for ctx.Err() == nil {
		_, moved := l.Seen()
		due, now, err := next(ctx, l)
		if err != nil {
			return now, err
		}
		left := seenInterval
		if !due.IsZero() {
			left = min(left, due.Sub(now))
		}
		if left <= 0 {
			return now, nil
		}
		retry.Await(ctx, moved, left)
		retry.Sleep(ctx, pollInterval)
	}
	return now, ctx.Err()
}

// next returns when the next timer is due (zero: there is no timer), and the log's clock.
func next(ctx context.Context, l *eventlog.Log) (due, now time.Time, err error) {
	var dueAt, nowAt int64
	if err := l.Options().Pool.QueryRow(ctx, l.SQL(sqlNext)).Scan(&dueAt, &nowAt); err != nil {
		return due, now, fmt.Errorf("read the next timer of %s: %w", l.Options().Owner, eventlog.Unavailable(err))
	}
	if dueAt != 0 {
		due = time.UnixMicro(dueAt).UTC()
	}
	return due, time.UnixMicro(nowAt).UTC(), nil
}

// Turn calls f while no other instance sends the commands of timers. If another instance sends them, Turn does nothing
// and returns false. If f takes longer than maxTurn, another instance may begin its turn before f returns. Turn keeps
// no statement waiting and no transaction open while f runs.
func Turn(ctx context.Context, l *eventlog.Log, f func(context.Context) error) (got bool, err error) {
	return turn(ctx, l, maxTurn, f)
}

// Pause calls f while no instance sends the commands of timers, for as long as f takes. It first waits until an
// instance that is sending commands has finished.
func Pause(ctx context.Context, l *eventlog.Log, f func(context.Context) error) error {
	for {
		got, err := turn(ctx, l, 0, f)
		if err != nil || got {
			return err
		}
		if !retry.Sleep(ctx, pollInterval) {
			return ctx.Err()
		}
	}
}

// turn is Turn with a bound that the caller chooses: the server ends the turn once the database session that holds the
// turn's lock has been idle for the time in the parameter silence. If this parameter is 0, there is no bound.
func turn(ctx context.Context, l *eventlog.Log, silence time.Duration, f func(context.Context) error) (got bool, err error) {
	conn, err := l.Options().Pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("take the turn of the timers of %s: %w", l.Options().Owner, eventlog.Unavailable(err))
	}
	defer conn.Release()
	key := l.LockKey("timers")
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&got); err != nil || !got {
		return false, eventlog.Unavailable(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, undone := conn.Exec(ctx, "SELECT pg_advisory_unlock($1), set_config('idle_session_timeout', '0', false)", key)
		if undone != nil {
			_ = conn.Conn().Close(ctx) // ending the database session releases the lock
		}
	}()
	// If the parameter silence is not 0, the server ends the turn of a process that freezes, and a turn that takes longer
	// than this time.
	_, err = conn.Exec(ctx, "SELECT set_config('idle_session_timeout', $1, false)",
		strconv.FormatInt(silence.Milliseconds(), 10)+"ms")
	if err != nil {
		return true, eventlog.Unavailable(err)
	}
	return true, f(ctx)
}

// Due returns up to limit timers that are due at the given time, those with the earliest due time first.
func Due(ctx context.Context, l *eventlog.Log, at time.Time, limit int) ([]Timer, error) {
	found, err := l.Options().Pool.Query(ctx, l.SQL(sqlDue), at.UnixMicro(), limit)
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
	return nil, fmt.Errorf("read the timers of %s that are due: %w", l.Options().Owner, eventlog.Unavailable(err))
}

// Drop removes a timer whose command has an outcome already.
func Drop(ctx context.Context, l *eventlog.Log, k eventlog.TimerKey) error {
	if _, err := l.Options().Pool.Exec(ctx, l.SQL(sqlDrop), k.Stream, k.Key, k.Generation); err != nil {
		return fmt.Errorf("drop the timer %s of %s: %w", k.Key, k.Stream, eventlog.Unavailable(err))
	}
	return nil
}

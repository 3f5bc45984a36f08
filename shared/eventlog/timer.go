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
)

type timerKey struct{ stream, key string }

// timerRow is a timer that was set. Its generation is the version of the event that set the timer.
type timerRow struct {
	generation catalog.Version
	due        time.Time
	command    string
	body       []byte
}

// timerNames is the UUID namespace of the ids of timers' commands.
var timerNames = uuid.MustParse("6d0a4f2e-51f4-5b0c-9a3c-0f6f1a7a2c55")

// CommandID returns the id of the timer's command. The id is derived from the timer, so that the command has one
// outcome however often it is sent.
func (k TimerKey) CommandID() string {
	return uuid.NewSHA1(timerNames, fmt.Appendf(nil, "%s\x00%s\x00%d", k.Stream, k.Key, k.Generation)).String()
}

// timersOf encodes the timers that an event sets, without their generation, and returns the keys of the timers that the
// event cancels.
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

// eachTimer calls f for each timer that an event sets, and with nil for each timer that the event cancels. If a timer
// is set for a time before the event's time, the timer becomes due at the event's time. Timers fire in the order of
// their due times. So a stream that keeps setting timers for the past cannot get ahead of the timers of other streams.
func eachTimer(stream string, version catalog.Version, at time.Time, d draft, f func(timerKey, *timerRow)) {
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

// timer records that a timer is set or, if the parameter row is nil, that the timer is gone.
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
)

// TimerChanges are changes of the table of timers: the rows of timers that events set, and the keys of timers that are
// gone because an event has canceled them or their command has an outcome. Each column is a slice.
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
	c.Generations, c.Dues = append(c.Generations, int64(row.generation)), append(c.Dues, row.due)
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

// TimersName is the name under which the timers of a log can be rebuilt, as if they were a projection.
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
	// sqlTimerEvents reads the events that set or cancel timers, in a range of positions.
	sqlTimerEvents = `SELECT ` + impersonal + ` FROM owner.events
WHERE position > $1 AND position <= $2 AND type = ANY ($3::text[]) ORDER BY position LIMIT $4`
)

// ReadTimerChanges reads up to limit events of the given types, with positions in the range after < position <= until.
// It returns the last change of each timer that these events set or cancel, the number of events, and the position of
// the last event.
func (l *Log) ReadTimerChanges(ctx context.Context, tx pgx.Tx, types []string, after, until catalog.Position, limit int) (
	c *TimerChanges, events int, last catalog.Position, err error) {
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

// finalTimers returns the last change of each timer that the events set or cancel.
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

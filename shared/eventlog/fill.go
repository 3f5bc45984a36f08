package eventlog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Fill describes what FillForTest writes.
type Fill struct {
	Events  int64 // number of events to write above the log's head; each has the body of a chat.message_sent
	Streams int64 // number of conversations over which the events are spread; 0: one
	// Prefix is the first part of the names of streams and rooms; "": "conversation:". The names are Prefix + "0",
	// Prefix + "1" and so on.
	Prefix string
	// Type and Topic are the type and the topic of the events. If Type is "", the events have the type "chat.message_sent"
	// and the topic "chat-events".
	Type, Topic string
	// Days is the number of days before now over which the times of the events are spread; 0: all events have the
	// current time.
	Days int
}

// sqlFill inserts rows like those that commits insert into the table owner.events. The only room of each event is its
// own stream. Positions and versions are dense; ids are random.
const sqlFill = `WITH heads AS MATERIALIZED (
  SELECT s, coalesce((SELECT max(version) FROM owner.events e WHERE e.stream = $3 || s), 0) AS have
  FROM generate_series(0, $2::bigint - 1) s)
INSERT INTO owner.events (position, stream, version, id, type, topic, actor, cause, command_type,
  correlation, time, class, rooms, subject, answers, traceparent, body, personal)
SELECT h.head + n, $3 || (n % $2), v.have + (n - 1) / $2 + 1, gen_random_uuid(), $4, $5, 'user-' || (n % 97),
  'fill-' || (h.head + n), 'chat.send_message', '', now() - $6 * interval '1 day' * (1 - n::float8 / $1), 1,
  ARRAY[$3 || (n % $2)], 'm-' || (h.head + n), true, '', '\x0a01311a0568656c6c6f'::bytea, NULL
FROM generate_series(1, $1::bigint) n,
  (SELECT greatest(i.floor, (SELECT max(position) FROM owner.events)) AS head FROM owner.incarnations i
   ORDER BY i.number DESC LIMIT 1) h,
  heads v WHERE v.s = n % $2 ORDER BY n`

// FillForTest writes many events at once, for tests and benchmarks with large logs. It writes no outcomes, memberships
// or rows of projections.
func (l *Log) FillForTest(ctx context.Context, f Fill) error {
	f.Streams = max(f.Streams, 1)
	if f.Prefix == "" {
		f.Prefix = "conversation:"
	}
	if f.Type == "" {
		f.Type, f.Topic = "chat.message_sent", "chat-events"
	}
	err := pgx.BeginFunc(ctx, l.o.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, l.SQL(sqlFill), f.Events, f.Streams, f.Prefix, f.Type, f.Topic, f.Days)
		if err == nil {
			_, err = tx.Exec(ctx, l.SQL(`INSERT INTO owner.event_rooms (room, position)
SELECT e.rooms[1], e.position FROM owner.events e
WHERE e.position > (SELECT max(position) FROM owner.events) - $1::bigint`), f.Events)
		}
		return err
	})
	if err == nil {
		_, err = l.o.Pool.Exec(ctx, l.SQL("ANALYZE owner.events, owner.event_rooms"))
	}
	if err != nil {
		return fmt.Errorf("fill the log of %s: %w", l.o.Owner, err)
	}
	_, err = l.Newest(ctx)
	return err
}

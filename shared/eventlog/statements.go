package eventlog

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// In all statements, "owner" stands for the owner's schema.
const (
	// sqlHead reads the head of the log: the position of its newest event, or the floor of an incarnation without
	// events. It also reads the current incarnation.
	sqlHead = `SELECT greatest(i.floor, (SELECT max(position) FROM owner.events)), i.number, i.id, i.floor
FROM owner.incarnations i ORDER BY i.number DESC LIMIT 1`
	// sqlReincarnate begins the incarnation after number $1, unless another instance has begun one already. The floor of
	// the new incarnation is $3 above the highest of the old floor, the head and the position $2.
	sqlReincarnate = `INSERT INTO owner.incarnations (number, id, head, floor, since)
SELECT i.number + 1, left(replace(gen_random_uuid()::text, '-', ''), 12), h.head, greatest(i.floor, h.head, $2) + $3, now()
FROM (SELECT * FROM owner.incarnations ORDER BY number DESC LIMIT 1) i,
  (SELECT coalesce(max(position), 0) AS head FROM owner.events) h
WHERE i.number = $1`

	// sqlGuard changes the settings of a database session or transaction that takes the log's lock. A wait for the lock
	// is divided into slices (see lockWaitSlice). Plans are cached while tables grow, so the settings make the planner
	// choose index lookups, which suit large tables. For the same reason, statements below use LATERAL.
	// synchronous_commit is switched on if the database has it off, because an acknowledged commit must survive a
	// crash.
	sqlGuard = `SELECT set_config('lock_timeout', $1, $3), set_config('idle_in_transaction_session_timeout', $2, $3),
  set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
    ELSE current_setting('synchronous_commit') END, $3),
  set_config('enable_seqscan', 'off', $3), set_config('enable_hashjoin', 'off', $3),
  set_config('enable_mergejoin', 'off', $3)`
	// sqlLock takes the lock in a statement of its own, so that later statements see everything that was committed
	// before the lock was taken. From then on, the server bounds how long the lock is held.
	sqlLock = `WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock($1))
SELECT set_config('transaction_timeout', $2, true), set_config('lock_timeout', $2, true) FROM locked`

	// sqlSame reports whether an event of a topic is in the log at its position.
	sqlSame = `SELECT EXISTS (SELECT FROM owner.events WHERE position = $1 AND id = $2 AND cause = $3)`

	// sqlCheck reads everything that the writes of a commit are checked against, except the tables of package inbox.
	// The first column is the kind of the row: 1 an outcome, 2 the version of a stream, 3 the newest event about a
	// part of a stream, 4 the head of the log, 5 a membership, 6 a timer, 7 the log's clock, 8 a number of rooms.
	sqlCheck = `SELECT 1 AS what, o.actor, o.command_id, o.type, o.stream, o.kind, o.version, o.position, o.code, o.text,
  o.field, o.digest
FROM unnest($1::text[], $2::text[]) AS k (actor, command_id),
LATERAL (SELECT * FROM owner.outcomes o WHERE o.actor = k.actor AND o.command_id = k.command_id LIMIT 1) o
UNION ALL
SELECT 2, '', '', '', s.stream, '', h.version, 0, '', '', '', ''
FROM unnest($3::text[]) AS s (stream),
LATERAL (SELECT version FROM owner.events e WHERE e.stream = s.stream ORDER BY version DESC LIMIT 1) h
UNION ALL
SELECT 3, '', k.subject, e.type, k.stream, '', 0, 0, '', '', '', ''
FROM unnest($10::text[], $11::text[]) AS k (stream, subject),
LATERAL (SELECT type FROM owner.events e WHERE e.stream = k.stream AND e.subject = k.subject
  ORDER BY version DESC LIMIT 1) e
UNION ALL
SELECT 5, k.member, '', '', k.room, '', 0, 0, '', '', '', ''
FROM unnest($4::text[], $5::text[]) AS k (member, room),
LATERAL (SELECT FROM owner.memberships m WHERE m.member = k.member AND m.room = k.room AND m.closed_position IS NULL
  LIMIT 1) m
UNION ALL
SELECT 6, '', k.key, '', k.stream, '', t.generation, (extract(epoch FROM t.due) * 1000000)::bigint, '', '', '', ''
FROM unnest($6::text[], $7::text[]) AS k (stream, key),
LATERAL (SELECT * FROM owner.timers t WHERE t.stream = k.stream AND t.key = k.key LIMIT 1) t
UNION ALL
SELECT 8, k.member, '', '', k.kind, '', m.rooms, 0, '', '', '', ''
FROM unnest($8::text[], $9::text[]) AS k (member, kind),
LATERAL (SELECT rooms FROM owner.member_rooms m WHERE m.member = k.member AND m.kind = k.kind LIMIT 1) m
UNION ALL
SELECT 7, '', '', '', '', '', 0, ` + ClockSQL + `, '', '', '', ''
UNION ALL
(SELECT 4, '', '', '', '', '', i.number, greatest(i.floor, (SELECT max(position) FROM owner.events)), i.id,
  i.floor::text, '', ''
FROM owner.incarnations i ORDER BY i.number DESC LIMIT 1)`

	sqlInsertEvents = `INSERT INTO owner.events (position, stream, version, id, type, topic, actor, cause, command_type,
  correlation, time, class, rooms, opens, closes, subject, answers, traceparent, body, personal, expires)
SELECT position, stream, version, id, type, topic, actor, cause, command_type, correlation, time, class,
  string_to_array(rooms, ','), nullif(opens, '')::jsonb, nullif(closes, '')::jsonb, subject, answers, traceparent, body,
  personal, expires
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
  $9::text[], $10::text[], $11::timestamptz[], $12::smallint[], $13::text[], $14::text[], $15::text[], $16::text[],
  $17::boolean[], $18::text[], $19::bytea[], $20::bytea[], $21::timestamptz[])
AS n (position, stream, version, id, type, topic, actor, cause, command_type, correlation, time, class, rooms, opens,
  closes, subject, answers, traceparent, body, personal, expires)`
	sqlInsertRooms = `INSERT INTO owner.event_rooms (room, position) SELECT * FROM unnest($1::text[], $2::bigint[])`
	// sqlForgetRooms removes the events of a stream from the index of rooms whose versions are from $2 to below $3.
	sqlForgetRooms = `DELETE FROM owner.event_rooms r USING unnest($1::text[], $2::bigint[], $3::bigint[]) AS n (stream, first, newest),
LATERAL (SELECT e.position, e.rooms FROM owner.events e
  WHERE e.stream = n.stream AND e.version >= n.first AND e.version < n.newest
  ORDER BY e.version LIMIT n.newest - n.first) e,
LATERAL unnest(e.rooms) AS x (room),
LATERAL (SELECT f.ctid FROM owner.event_rooms f WHERE f.room = x.room AND f.position = e.position LIMIT 1) f
WHERE r.ctid = f.ctid`
	sqlInsertOutcomes = `INSERT INTO owner.outcomes (actor, command_id, type, stream, kind, version, position, code, text,
  field, digest, at)
SELECT n.*, $12::timestamptz FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
  $7::bigint[], $8::text[], $9::text[], $10::text[], $11::text[]) AS n`
	sqlOpenRooms = `INSERT INTO owner.memberships (room, member, opened_version, opened_position)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
ON CONFLICT (member, room) WHERE closed_position IS NULL DO NOTHING`
	sqlCloseRooms = `UPDATE owner.memberships m SET closed_version = n.version, closed_position = n.position
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS n (room, member, version, position),
LATERAL (SELECT o.ctid FROM owner.memberships o
  WHERE o.room = n.room AND o.member = n.member AND o.closed_position IS NULL LIMIT 1) o
WHERE m.ctid = o.ctid`
	sqlRedact = `UPDATE owner.events e SET personal = NULL, redacted = true
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (stream, subject, version)
WHERE e.stream = n.stream AND e.subject = n.subject AND e.version < n.version AND e.personal IS NOT NULL`
	sqlNotify = `SELECT pg_notify($1, $2)`

	sqlOutcome = `SELECT type, stream, kind, version, position, code, text, field FROM owner.outcomes
WHERE actor = $1 AND command_id = $2`
	// sqlPruneOutcomes removes up to 5,000 outcomes from before $1, the oldest first. $2 is the time of the newest
	// outcome that its previous run removed. The index entries of removed rows remain until the next vacuum; the
	// condition on $2 skips them.
	sqlPruneOutcomes = `WITH gone AS (DELETE FROM owner.outcomes WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM owner.outcomes WHERE at < $1 AND at >= $2 ORDER BY at LIMIT 5000)) RETURNING at)
SELECT count(*), coalesce(max(at), $2) FROM gone`
	// sqlPruneSuperseded examines up to 5,000 events of counters (class 2) without a subject from before $1, the oldest
	// first, beginning after the event with the time $2 and the position $3. It deletes those that the relay has published
	// and newer events of their streams have superseded. It returns their number, and the last examined event.
	sqlPruneSuperseded = `WITH examined AS (
  SELECT time, position, stream, version FROM owner.events
  WHERE class = 2 AND subject = '' AND time < $1 AND (time, position) > ($2, $3) ORDER BY time, position LIMIT 5000),
superseded AS MATERIALIZED (
  SELECT x.position FROM examined x, LATERAL (
    SELECT FROM owner.events n WHERE n.stream = x.stream AND n.version > x.version LIMIT 1) n
  WHERE x.position <= (SELECT position FROM owner.relay)),
gone AS (DELETE FROM owner.events e USING superseded s WHERE e.position = s.position RETURNING e.position)
SELECT (SELECT count(*) FROM gone), x.time, x.position FROM examined x ORDER BY x.time DESC, x.position DESC LIMIT 1`

	columns    = beforePersonal + `, personal` + afterPersonal
	impersonal = beforePersonal + `, NULL::bytea AS personal` + afterPersonal // without personal fields

	beforePersonal = `position, stream, version, id, type, topic, actor, cause, command_type, correlation, time, class, rooms,
  opens, closes, subject, answers, traceparent, body`
	afterPersonal = `, redacted, expires`

	// sqlLoad reads the events that a decision needs, and the version of the newest event, which it reads from an
	// index. It is a single statement, so it sees a single state of the stream.
	sqlLoad = `SELECT true AS wanted, ` + impersonal + ` FROM owner.events WHERE stream = $1 AND subject = '' AND version > $2
UNION ALL
SELECT true, ` + impersonal + ` FROM owner.events WHERE stream = $1 AND subject = ANY ($3::text[]) AND subject <> ''
UNION ALL
(SELECT false, position, stream, version, '00000000-0000-0000-0000-000000000000', '', '', '', '', '', '', 'epoch', 0,
  NULL, NULL, NULL, '', false, '', NULL, NULL, false, NULL
FROM owner.events WHERE stream = $1 ORDER BY version DESC LIMIT 1)
ORDER BY version, wanted`

	sqlRead = `SELECT ` + columns + ` FROM owner.events
WHERE position > $1 AND position <= $2 AND ($4::text = '' OR topic = $4) ORDER BY position LIMIT $3`
	// sqlReadStream orders by version, and so can use the index on stream and version. Within a stream, the order of
	// versions is also the order of positions.
	sqlReadStream = `SELECT ` + columns + ` FROM owner.events
WHERE stream = $5 AND version > $6 AND position > $1 AND position <= $2 AND ($4::text = '' OR topic = $4)
ORDER BY version LIMIT $3`
)

// statements holds those of the statements above that read or write tables, for one schema. Owners share connections,
// so each statement names its schema.
type statements struct {
	in func(string) string // fills the schema into a statement that is not among the fields below

	head, reincarnate, same, check, insertEvents, insertRooms, forgetRooms, insertOutcomes, openRooms, closeRooms, redact string
	outcome, pruneOutcomes, load, read, readStream                                                                        string
}

func newStatements(owner string) statements {
	schema := pgx.Identifier{owner}.Sanitize() + "."
	in := func(s string) string { return strings.ReplaceAll(s, "owner.", schema) }
	return statements{in: in,
		head: in(sqlHead), reincarnate: in(sqlReincarnate), same: in(sqlSame), check: in(sqlCheck),
		insertEvents: in(sqlInsertEvents), insertRooms: in(sqlInsertRooms), forgetRooms: in(sqlForgetRooms),
		insertOutcomes: in(sqlInsertOutcomes), openRooms: in(sqlOpenRooms), closeRooms: in(sqlCloseRooms),
		redact:  in(sqlRedact),
		outcome: in(sqlOutcome), pruneOutcomes: in(sqlPruneOutcomes), load: in(sqlLoad),
		read: in(sqlRead), readStream: in(sqlReadStream),
	}
}

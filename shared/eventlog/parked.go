package eventlog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

// Parked is an event of another owner that could not be taken, or one that waits behind such a one. It is known by
// source, stream and version. What is parked lies above what was read of its stream; whatever does not is past.
type Parked struct {
	Source  string
	Stream  string
	Version int64
	Record  *meshv1.Record // without a body: what people wrote is in its owner's log, as far as it is not redacted
	Error   string         // empty: it waits behind another
	At      time.Time
}

const (
	sqlParking = `SELECT read.version, coalesce((SELECT min(p.version) FROM owner.parked p
  WHERE p.source = $1 AND p.stream = $2 AND p.version > read.version), 0)
FROM (SELECT coalesce((SELECT version FROM owner.readings WHERE source = $1 AND stream = $2), 0) AS version) read`
	// Whoever waits has somebody to wait for, or is not parked: then that one was dealt with meanwhile.
	sqlPark = `INSERT INTO owner.parked (source, stream, version, record, error, at)
SELECT $1, $2, $3, $4, $5, $6
WHERE $3 > coalesce((SELECT version FROM owner.readings WHERE source = $1 AND stream = $2), 0)
  AND ($5 <> '' OR EXISTS (SELECT FROM owner.parked p WHERE p.source = $1 AND p.stream = $2 AND p.version <= $3
    AND p.version > coalesce((SELECT version FROM owner.readings WHERE source = $1 AND stream = $2), 0)))
ON CONFLICT (source, stream, version) DO UPDATE
  SET error = CASE WHEN excluded.error = '' THEN parked.error ELSE excluded.error END`
	sqlParkedLive = ` FROM owner.parked p WHERE p.version > coalesce(
  (SELECT r.version FROM owner.readings r WHERE r.source = p.source AND r.stream = p.stream), 0)`
	sqlParked   = `SELECT p.source, p.stream, p.version, p.record, p.error, p.at` + sqlParkedLive
	sqlParkedOf = sqlParked + ` AND p.source = $1 AND p.stream = $2 AND p.version BETWEEN $3 AND $4
ORDER BY p.version LIMIT 1000`
	sqlParkedBy = sqlParked + ` ORDER BY p.source, p.stream, p.version`
	sqlUnpark   = `DELETE FROM owner.parked WHERE source = $1 AND stream = $2 AND version <=
  greatest($3, coalesce((SELECT version FROM owner.readings WHERE source = $1 AND stream = $2), 0))`
	sqlLeftOf = `SELECT count(*)` + sqlParkedLive + ` AND p.source = $1 AND p.stream = $2`

	sqlDropLetter = `INSERT INTO owner.dropped_letters (partition, "offset", id, at) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING`
	sqlForgetLetters = `DELETE FROM owner.dropped_letters WHERE at < $1`
	sqlDropped       = `SELECT partition, "offset", id FROM owner.dropped_letters ORDER BY partition, "offset"`
)

// in names the owner's schema in a statement.
func (l *Log) in(statement string) string {
	return strings.ReplaceAll(statement, "owner.", pgx.Identifier{l.o.Owner}.Sanitize()+".")
}

// Parking says how far a foreign stream was read, and the version of the first event above that is parked; 0: none.
func (l *Log) Parking(ctx context.Context, source, stream string) (read, parked int64, err error) {
	if err := l.o.Pool.QueryRow(ctx, l.in(sqlParking), source, stream).Scan(&read, &parked); err != nil {
		return 0, 0, fmt.Errorf("read how far %s of %s was read: %w", stream, source, Away(err))
	}
	return read, parked, nil
}

// Park keeps an event for later. It does not when the event was read already, nor, when it would only wait, if none
// before it is parked any more: then it can be taken now.
func (l *Log) Park(ctx context.Context, p Parked) (parked bool, err error) {
	record, err := proto.Marshal(p.Record)
	if err != nil {
		return false, fmt.Errorf("park %s of %s at version %d: %w", p.Stream, p.Source, p.Version, err)
	}
	err = l.parking(ctx, p.Source, p.Stream, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, l.in(sqlPark), p.Source, p.Stream, p.Version, record, storable(p.Error),
			l.o.Now().UTC())
		parked = err == nil && done.RowsAffected() > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("park %s of %s at version %d: %w", p.Stream, p.Source, p.Version, Away(err))
	}
	return parked, nil
}

// Unpark forgets what was read meanwhile, and what is parked up to a version, and says how much is left of the stream.
func (l *Log) Unpark(ctx context.Context, source, stream string, upTo int64) (left int64, err error) {
	err = l.parking(ctx, source, stream, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, l.in(sqlUnpark), source, stream, upTo); err != nil {
			return err
		}
		return tx.QueryRow(ctx, l.in(sqlLeftOf), source, stream).Scan(&left)
	})
	if err != nil {
		return 0, fmt.Errorf("unpark %s of %s: %w", stream, source, Away(err))
	}
	return left, nil
}

// parking runs a transaction that is alone with what is parked of a stream, over all instances: nobody begins to wait
// behind one that is being dealt with.
func (l *Log) parking(ctx context.Context, source, stream string, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, l.o.Pool, func(tx pgx.Tx) error {
		key := lockKey(l.o.Owner, "parked/"+source+"/"+stream)
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", key); err != nil {
			return err
		}
		return do(tx)
	})
}

// ListParked lists all that is parked, by source, stream and version.
func (l *Log) ListParked(ctx context.Context) ([]Parked, error) {
	return l.parked(ctx, l.in(sqlParkedBy))
}

// ParkedOf lists the first thousand events that are parked of a stream, between two versions, both included.
func (l *Log) ParkedOf(ctx context.Context, source, stream string, from, to int64) ([]Parked, error) {
	return l.parked(ctx, l.in(sqlParkedOf), source, stream, from, to)
}

func (l *Log) parked(ctx context.Context, statement string, args ...any) ([]Parked, error) {
	found, err := l.o.Pool.Query(ctx, statement, args...)
	if err == nil {
		var all []Parked
		all, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (Parked, error) {
			p := Parked{Record: &meshv1.Record{}}
			var record []byte
			if err := row.Scan(&p.Source, &p.Stream, &p.Version, &record, &p.Error, &p.At); err != nil {
				return p, err
			}
			return p, proto.Unmarshal(record, p.Record)
		})
		if err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read what is parked at %s: %w", l.o.Owner, Away(err))
}

// storable is a text without the one character that Postgres has no place for.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Letter is a dead letter of this owner: where it is on its topic, and the id of its message, as offsets begin anew in a
// topic that is made anew.
type Letter struct {
	Partition int32
	Offset    int64
	ID        string
}

// lettersKept is longer than the topics keep what the letters are about.
const lettersKept = 60 * 24 * time.Hour

// DropLetter notes that a dead letter was dealt with.
func (l *Log) DropLetter(ctx context.Context, letter Letter) error {
	now := l.o.Now().UTC()
	b := &pgx.Batch{}
	b.Queue(l.in(sqlForgetLetters), now.Add(-lettersKept))
	b.Queue(l.in(sqlDropLetter), letter.Partition, letter.Offset, storable(letter.ID), now)
	if err := l.o.Pool.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("drop the dead letter %d/%d: %w", letter.Partition, letter.Offset, Away(err))
	}
	return nil
}

// DroppedLetters lists the dead letters that were dealt with.
func (l *Log) DroppedLetters(ctx context.Context) ([]Letter, error) {
	found, err := l.o.Pool.Query(ctx, l.in(sqlDropped))
	if err == nil {
		var all []Letter
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[Letter]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read the dropped dead letters of %s: %w", l.o.Owner, Away(err))
}

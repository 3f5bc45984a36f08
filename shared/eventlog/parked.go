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

// Parked is a stream of another owner of which nothing is applied, from the event that failed on.
type Parked struct {
	Source string
	Topic  string
	Stream string
	// Position and Version are those of the event that failed, and Index counts the effects of it that are applied.
	Position int64
	Index    int
	Version  int64
	// Waiting counts the events behind it that were passed over.
	Waiting int64
	// Record is the event that failed, without a body: what people wrote is in its owner's log, as far as it is not
	// redacted.
	Record *meshv1.Record
	Error  string
	At     time.Time
	// HeldUntil is the time until which no further event of the stream may be passed over, because a retry is about to
	// end. Zero: it is not held.
	HeldUntil time.Time
}

// Resolution changes what is parked of a stream in the transaction of what followed from its events.
type Resolution struct {
	// Of is the stream as it was read. It must not have changed since.
	Of Parked
	// Left is what stays parked; nil: nothing does.
	Left *Parked
	// HoldUntil, if it is set, is all that changes: until then no further event of the stream may be passed over. Then it
	// matters only that the stream is parked.
	HoldUntil time.Time
}

// ParkedChangedError reports that a write was decided on something else than what is parked now: read it again.
type ParkedChangedError struct {
	Source string
	Topic  string
}

func (e *ParkedChangedError) Error() string {
	return fmt.Sprintf("what is parked of %s of %s has changed", e.Topic, e.Source)
}

const (
	parkedColumns = `p.source, p.topic, p.stream, p.position, p.index, p.version, p.waiting, p.record, p.error, p.at,
  p.held_until`

	sqlPark = `INSERT INTO owner.parked_streams (source, topic, stream, position, index, version, waiting, record, error,
  at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`
	sqlPassed = `UPDATE owner.parked_streams SET waiting = waiting + $4
WHERE source = $1 AND topic = $2 AND stream = $3`
	sqlResolutions = `SELECT k.source, k.topic, k.stream, p.position, p.index, p.waiting, n.revision
FROM unnest($1::text[], $2::text[], $3::text[]) AS k (source, topic, stream),
LATERAL (SELECT * FROM owner.parked_streams p
  WHERE p.source = k.source AND p.topic = k.topic AND p.stream = k.stream LIMIT 1) p,
LATERAL (SELECT revision FROM owner.consumers n WHERE n.source = k.source AND n.topic = k.topic LIMIT 1) n`
	sqlHold       = `UPDATE owner.parked_streams SET held_until = $4 WHERE source = $1 AND topic = $2 AND stream = $3`
	sqlUnpark     = `DELETE FROM owner.parked_streams WHERE source = $1 AND topic = $2 AND stream = $3`
	sqlParkedLeft = `UPDATE owner.parked_streams SET position = $4, index = $5, version = $6, waiting = $7, record = $8,
  error = $9, at = $10, held_until = $11 WHERE source = $1 AND topic = $2 AND stream = $3`

	// One statement, hence one state: the revision is that of these rows.
	sqlParkedOf = `SELECT n.revision, ` + parkedColumns + ` FROM owner.consumers n
LEFT JOIN owner.parked_streams p ON p.source = n.source AND p.topic = n.topic WHERE n.source = $1 AND n.topic = $2`
	sqlListParked = `SELECT ` + parkedColumns + ` FROM owner.parked_streams p
WHERE (p.source, p.stream, p.topic) > ($1, $2, $3) ORDER BY p.source, p.stream, p.topic LIMIT $4`
	sqlParkedStream = `SELECT ` + parkedColumns + ` FROM owner.parked_streams p WHERE p.source = $1 AND p.stream = $2`

	// Events that an earlier release parked, each by itself, without those that it has read meanwhile.
	sqlParkedEvents = `SELECT p.stream, p.version, p.record, p.error, p.at FROM owner.parked p WHERE p.source = $1
  AND p.version > coalesce((SELECT r.version FROM owner.readings r WHERE r.source = p.source AND r.stream = p.stream), 0)
ORDER BY p.stream, p.version`
	sqlForgetParkedEvents = `DELETE FROM owner.parked WHERE source = $1`

	sqlDropLetter = `INSERT INTO owner.dropped_letters (partition, "offset", id, at) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING`
	sqlForgetLetters = `DELETE FROM owner.dropped_letters WHERE at < $1`
	sqlDropped       = `SELECT partition, "offset", id FROM owner.dropped_letters ORDER BY partition, "offset"`
)

// in names the owner's schema in a statement.
func (l *Log) in(statement string) string {
	return strings.ReplaceAll(statement, "owner.", pgx.Identifier{l.o.Owner}.Sanitize()+".")
}

// nullableParked is a row that may be absent.
type nullableParked struct {
	source, topic, stream, problem *string
	position, version, waiting     *int64
	index                          *int
	record                         []byte
	at, heldUntil                  *time.Time
}

func (n *nullableParked) targets() []any {
	return []any{&n.source, &n.topic, &n.stream, &n.position, &n.index, &n.version, &n.waiting, &n.record,
		&n.problem, &n.at, &n.heldUntil}
}

func (n *nullableParked) parked() (Parked, error) {
	p := Parked{Source: *n.source, Topic: *n.topic, Stream: *n.stream, Position: *n.position, Index: *n.index,
		Version: *n.version, Waiting: *n.waiting, Error: *n.problem, At: n.at.UTC(), Record: &meshv1.Record{}}
	if n.heldUntil != nil {
		p.HeldUntil = *n.heldUntil
	}
	return p, proto.Unmarshal(n.record, p.Record)
}

// ParkedOf reads the streams that are parked of a topic, and the revision that an Advance has to name.
func (l *Log) ParkedOf(ctx context.Context, source, topic string) (all []Parked, revision int64, err error) {
	found, err := l.o.Pool.Query(ctx, l.in(sqlParkedOf), source, topic)
	if err == nil {
		for found.Next() && err == nil {
			var n nullableParked
			if err = found.Scan(append([]any{&revision}, n.targets()...)...); err != nil || n.stream == nil {
				continue
			}
			var p Parked
			p, err = n.parked()
			all = append(all, p)
		}
		found.Close()
		if err == nil {
			err = found.Err()
		}
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read what is parked of %s of %s: %w", topic, source, Away(err))
	}
	return all, revision, nil
}

// ListParked lists parked streams by source, stream and topic, after one of them (zero: from the first), at most limit.
func (l *Log) ListParked(ctx context.Context, after Parked, limit int) ([]Parked, error) {
	return l.parked(ctx, sqlListParked, after.Source, after.Stream, after.Topic, limit)
}

// ParkedStream finds what is parked of a stream; events of a stream may go to several topics.
func (l *Log) ParkedStream(ctx context.Context, source, stream string) ([]Parked, error) {
	return l.parked(ctx, sqlParkedStream, source, stream)
}

func (l *Log) parked(ctx context.Context, statement string, args ...any) ([]Parked, error) {
	found, err := l.o.Pool.Query(ctx, l.in(statement), args...)
	if err == nil {
		var all []Parked
		all, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (Parked, error) {
			var n nullableParked
			if err := row.Scan(n.targets()...); err != nil {
				return Parked{}, err
			}
			return n.parked()
		})
		if err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read what is parked at %s: %w", l.o.Owner, Away(err))
}

// ImportParked parks the streams of which an earlier release had parked events. Place returns the position of one, and up
// to which position all of its topic is passed. It has no effect when it was done before.
func (l *Log) ImportParked(ctx context.Context, source string,
	place func(*meshv1.Record) (position, passed int64, err error)) error {
	err := pgx.BeginFunc(ctx, l.o.Pool, func(tx pgx.Tx) error {
		found, err := tx.Query(ctx, l.in(sqlParkedEvents), source)
		if err != nil {
			return err
		}
		streams := map[string]*Parked{}
		p := Parked{Source: source}
		var record []byte
		if _, err := pgx.ForEachRow(found, []any{&p.Stream, &p.Version, &record, &p.Error, &p.At}, func() error {
			one := p
			one.Record = &meshv1.Record{}
			if err := proto.Unmarshal(record, one.Record); err != nil {
				return err
			}
			one.Topic = one.Record.GetTopic()
			var passed int64
			if one.Position, passed, err = place(one.Record); err != nil {
				return err
			}
			if first := streams[p.Stream]; first == nil {
				streams[p.Stream] = &one
			} else if one.Position <= passed {
				first.Waiting++
			}
			return nil
		}); err != nil {
			return err
		}
		for _, p := range streams {
			if err := l.park(ctx, tx, *p); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, l.in(sqlForgetParkedEvents), source)
		return err
	})
	if err != nil {
		return fmt.Errorf("take over what an earlier release parked of %s: %w", source, Away(err))
	}
	return nil
}

func (l *Log) park(ctx context.Context, tx pgx.Tx, p Parked) error {
	b := &pgx.Batch{}
	if err := queuePark(b, l.in(sqlPark), p); err != nil {
		return err
	}
	return tx.SendBatch(ctx, b).Close()
}

func queuePark(b *pgx.Batch, statement string, p Parked) error {
	record, err := proto.Marshal(p.Record)
	if err != nil {
		return err
	}
	b.Queue(statement, p.Source, p.Topic, p.Stream, p.Position, p.Index, p.Version, p.Waiting, record,
		storable(p.Error), p.At)
	return nil
}

func queueParkedLeft(b *pgx.Batch, statement string, p Parked) error {
	record, err := proto.Marshal(p.Record)
	if err != nil {
		return err
	}
	var held *time.Time
	if !p.HeldUntil.IsZero() {
		held = &p.HeldUntil
	}
	b.Queue(statement, p.Source, p.Topic, p.Stream, p.Position, p.Index, p.Version, p.Waiting, record,
		storable(p.Error), p.At, held)
	return nil
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

package inbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
)

// Parked is a parked stream of another owner. The event that failed (except its first Index effects) and the later
// events of the stream are not applied.
type Parked struct {
	Source string
	Topic  string
	Stream string
	// Position and Version are those of the event that failed. Index is the number of its effects that are applied
	// already.
	Position catalog.Position
	Index    int
	Version  catalog.Version
	// Waiting is the number of later events of the stream that were passed over.
	Waiting int64
	// Record is the event that failed, without its body: personal texts remain in the owner's log only, where they can
	// be redacted.
	Record *meshv1.Record
	Error  string
	At     time.Time
	// HeldUntil is the time until which no further event of the stream may be passed over, because an operator's retry
	// is about to catch up with the partition's checkpoint. Zero: the stream is not held.
	HeldUntil time.Time
}

// Resolution changes a parked stream, in the same transaction as the effects of its events.
type Resolution struct {
	// Of is the parked stream as it was read. The write fails if the parked stream has changed since then.
	Of Parked
	// Left is the new content of the stream's row; nil: the row is deleted, and the stream is no longer parked.
	Left *Parked
	// HoldUntil, if set, becomes the HeldUntil of the parked stream, and nothing else changes. The write of such a
	// Resolution fails only if the stream is no longer parked.
	HoldUntil time.Time
}

// ParkedChangedError reports that the parked streams have changed since the write was decided. Read them again.
type ParkedChangedError struct {
	Source string
	Topic  string
}

func (e *ParkedChangedError) Error() string {
	return fmt.Sprintf("the parked streams of %s of %s have changed", e.Topic, e.Source)
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

	// sqlParkedOf is a single statement, so it sees a single state: the revision matches the rows.
	sqlParkedOf = `SELECT n.revision, ` + parkedColumns + ` FROM owner.consumers n
LEFT JOIN owner.parked_streams p ON p.source = n.source AND p.topic = n.topic WHERE n.source = $1 AND n.topic = $2`
	sqlListParked = `SELECT ` + parkedColumns + ` FROM owner.parked_streams p
WHERE (p.source, p.stream, p.topic) > ($1, $2, $3) ORDER BY p.source, p.stream, p.topic LIMIT $4`
	sqlParkedStream = `SELECT ` + parkedColumns + ` FROM owner.parked_streams p WHERE p.source = $1 AND p.stream = $2`

	// An earlier release parked single events instead of streams. sqlParkedEvents reads these events, except those that
	// the earlier release applied later.
	sqlParkedEvents = `SELECT p.stream, p.version, p.record, p.error, p.at FROM owner.parked p WHERE p.source = $1
  AND p.version > coalesce((SELECT r.version FROM owner.readings r WHERE r.source = p.source AND r.stream = p.stream), 0)
ORDER BY p.stream, p.version`
	sqlForgetParkedEvents = `DELETE FROM owner.parked WHERE source = $1`
)

// nullableParked is a row of a parked stream. Its columns are null if a LEFT JOIN found no parked stream.
type nullableParked struct {
	source, topic, stream, problem *string
	position                       *catalog.Position
	version                        *catalog.Version
	waiting                        *int64
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

// ParkedOf returns the parked streams of a topic, and the revision that an Advance must contain.
func (i *Inbox) ParkedOf(ctx context.Context, source, topic string) (all []Parked, revision int64, err error) {
	found, err := i.o.Pool.Query(ctx, i.o.SQL(sqlParkedOf), source, topic)
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
		return nil, 0, fmt.Errorf("read the parked streams of %s of %s: %w", topic, source, pgerror.Unavailable(err))
	}
	return all, revision, nil
}

// ListParked returns up to limit parked streams, in the order of source, stream and topic. It begins with the one that
// follows the given parked stream, or with the first one if the zero value is given.
func (i *Inbox) ListParked(ctx context.Context, after Parked, limit int) ([]Parked, error) {
	return i.parked(ctx, sqlListParked, after.Source, after.Stream, after.Topic, limit)
}

// ParkedStream returns the entries of a parked stream, one for each topic on which the stream is parked.
func (i *Inbox) ParkedStream(ctx context.Context, source, stream string) ([]Parked, error) {
	return i.parked(ctx, sqlParkedStream, source, stream)
}

func (i *Inbox) parked(ctx context.Context, statement string, args ...any) ([]Parked, error) {
	found, err := i.o.Pool.Query(ctx, i.o.SQL(statement), args...)
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
	return nil, fmt.Errorf("read the parked streams at %s: %w", i.o.Owner, pgerror.Unavailable(err))
}

// ImportParked parks the streams of which an earlier release had parked events. The function place returns the position
// of an event, and the position up to which the earlier release had consumed the event's topic. A second call has no
// effect.
func (i *Inbox) ImportParked(ctx context.Context, source string,
	place func(*meshv1.Record) (position, passed catalog.Position, err error)) error {
	err := pgx.BeginFunc(ctx, i.o.Pool, func(tx pgx.Tx) error {
		found, err := tx.Query(ctx, i.o.SQL(sqlParkedEvents), source)
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
			var passed catalog.Position
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
			if err := i.park(ctx, tx, *p); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, i.o.SQL(sqlForgetParkedEvents), source)
		return err
	})
	if err != nil {
		return fmt.Errorf("import the events of %s that an earlier release parked: %w", source, pgerror.Unavailable(err))
	}
	return nil
}

func (i *Inbox) park(ctx context.Context, tx pgx.Tx, p Parked) error {
	b := &pgx.Batch{}
	if err := queuePark(b, i.o.SQL(sqlPark), p); err != nil {
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

// storable replaces the characters that Postgres cannot store in a text: invalid UTF-8 and the NUL character.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

package eventlog

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/progress"
)

// This file contains the functions that other packages need to follow a log by position in transactions of their own,
// as relay, projection and rebuild do, or to use tables in the log's schema.

// Options returns the options of the log, with the defaults filled in. Only LockWait is returned as it was passed to
// Open.
func (l *Log) Options() Options { return l.o }

// SQL returns a statement with the log's schema in place of "owner.".
func (l *Log) SQL(statement string) string {
	return strings.ReplaceAll(statement, "owner.", pgx.Identifier{l.o.Owner}.Sanitize()+".")
}

// TakeLease takes the lease of this log for a purpose, such as "relay" (see advisory.TakeLease). It sets the fields
// Key, Purpose and Schema of o.
func (l *Log) TakeLease(ctx context.Context, purpose string, o advisory.LeaseOptions) (*advisory.Lease, context.Context, error) {
	o.Key, o.Purpose, o.Schema = l.LockKey(purpose), "the "+purpose, l.o.Owner
	return advisory.TakeLease(ctx, l.o.Pool.Config().ConnConfig, o)
}

// SetWaiting records that a waiter, such as "relay", waits for a dependency because of err. If err is nil, it records
// that the waiter continues. Options.Waiting is called when the first waiter of a dependency begins to wait, and when
// no waiter is left.
func (l *Log) SetWaiting(waiter, dependency string, err error) {
	l.waiting.set(waiter, dependency, err)
}

// Seen returns the newest head of the log (see Log.Head) that this instance has seen, and a channel that is closed when
// this position rises.
func (l *Log) Seen() (position catalog.Position, moved <-chan struct{}) { return l.head.Now() }

// Head is the end of a log.
type Head struct {
	Point
	Floor catalog.Position // positions of the current incarnation are above the floor
}

// ReadHead reads the head of the log on a database connection of the caller.
func (l *Log) ReadHead(ctx context.Context, conn *pgx.Conn) (Head, error) {
	at, position, err := l.readHead(ctx, conn)
	return Head{Point{position, at.id}, at.floor}, err
}

// QueueRead adds a statement to a batch. The statement reads up to limit events above a position into a slice, which is
// filled when the results of the batch have been read.
func (l *Log) QueueRead(b *pgx.Batch, after catalog.Position, limit int, into *[]Logged) {
	b.Queue(l.sql.read, after, int64(1<<62), limit, "").Query(func(found pgx.Rows) (err error) {
		*into, err = l.scanAll(found)
		return err
	})
}

// Events returns the envelope.Event of each logged event.
func Events(all []Logged) []envelope.Event {
	events := make([]envelope.Event, len(all))
	for i, e := range all {
		events[i] = e.Event
	}
	return events
}

// Applied returns the newest positions of projections that this instance has read or saved, by name. A projection is
// applied up to its position. The log forgets these positions whenever the database may have lost transactions of
// projections.
func (l *Log) Applied() *progress.Set { return &l.applied }

// LockKey returns the key of the log's advisory lock for a purpose, such as "rebuild".
func (l *Log) LockKey(purpose string) int64 { return lockKey(l.o.Owner, purpose) }

// ReadSelected reads the events at the positions that an SQL statement selects, ascending by position. The personal
// fields of expired events are empty.
func (l *Log) ReadSelected(ctx context.Context, positions string, args ...any) ([]Logged, error) {
	statement := l.SQL(`SELECT ` + columns + ` FROM owner.events WHERE position IN (` + positions + `) ORDER BY position`)
	found, err := l.o.Pool.Query(ctx, statement, append([]any{planned}, args...)...)
	if err != nil {
		return nil, err
	}
	all, err := l.scanAll(found)
	if err != nil {
		return nil, err
	}
	l.hideExpired(all)
	return all, nil
}

package eventlog

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/progress"
)

// This file has what packages need that follow a log by position, in transactions of their own: relay, projection and
// rebuild, and those that keep tables in the schema of the log.

// Options returns the options of the log, with their defaults.
func (l *Log) Options() Options { return l.o }

// SQL puts the log's schema into a statement, in which "owner." stands for it.
func (l *Log) SQL(statement string) string {
	return strings.ReplaceAll(statement, "owner.", pgx.Identifier{l.o.Owner}.Sanitize()+".")
}

// TakeLease takes the lease of this log for a purpose, such as "relay". It sets the fields of o that name the lock.
func (l *Log) TakeLease(ctx context.Context, purpose string, o advisory.LeaseOptions) (*advisory.Lease, context.Context, error) {
	o.Key, o.Purpose, o.Schema = l.LockKey(purpose), "the "+purpose, l.o.Owner
	return advisory.TakeLease(ctx, l.o.Pool.Config().ConnConfig, o)
}

// SetWaiting records that a waiter, such as "relay", waits for a dependency, with the reason err, or that it continues,
// if err is nil. Options.Waiting is called when the first waiter begins to wait, and when none is left.
func (l *Log) SetWaiting(waiter, dependency string, err error) {
	l.waiting.set(waiter, dependency, err)
}

// Seen returns the newest position that this instance knows to be committed, and a channel that is closed when it rises.
func (l *Log) Seen() (position int64, moved <-chan struct{}) { return l.head.Now() }

// Head is the end of a log.
type Head struct {
	Point
	Floor int64 // the positions of the incarnation's events are above it
}

// ReadHead reads the head of the log in a session of the caller.
func (l *Log) ReadHead(ctx context.Context, conn *pgx.Conn) (Head, error) {
	at, position, err := l.readHead(ctx, conn)
	return Head{Point{position, at.id}, at.floor}, err
}

// QueueRead adds a statement to a batch that reads up to limit events above a position into a slice, which is complete
// when the batch has been read.
func (l *Log) QueueRead(b *pgx.Batch, after int64, limit int, into *[]Logged) {
	b.Queue(l.sql.read, after, int64(1<<62), limit, "").Query(func(found pgx.Rows) (err error) {
		*into, err = l.scanAll(found)
		return err
	})
}

// Events returns the events of a part of the log.
func Events(all []Logged) []envelope.Event {
	events := make([]envelope.Event, len(all))
	for i, e := range all {
		events[i] = e.Event
	}
	return events
}

// Applied returns how far projections are applied, by name, as far as this instance knows. The log forgets it whenever the
// database may have lost the transactions of projections.
func (l *Log) Applied() *progress.Set { return &l.applied }

// LockKey returns the key of the log's advisory lock for a purpose, such as "rebuild".
func (l *Log) LockKey(purpose string) int64 { return lockKey(l.o.Owner, purpose) }

// ReadSelected reads the events whose positions a statement selects, ascending. Expired fields are empty.
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

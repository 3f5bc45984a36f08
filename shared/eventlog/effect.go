package eventlog

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/jobs"
)

// Effect returns the jobs that follow from an event that is about to be committed. In the event e, only the fields ID,
// Type, Source, Stream, Version, Position, Time, Actor, Cause, Correlation, Class, Subject and TraceParent are set. The
// message m has all fields, including personal ones; do not copy personal fields into a job, because jobs are not
// redacted. An Effect runs under the log's lock, so it must be quick and do nothing but return the jobs.
type Effect func(e envelope.Event, m proto.Message) []jobs.Job

// effects holds the queue of jobs, and the functions that return the jobs of an event.
type effects struct {
	queue *jobs.Queue
	of    map[string]Effect // by the event's type
}

// Effects registers the effects of events, by the event's type. The jobs of an event are inserted in the transaction
// that commits the event. Call Effects before Run.
func (l *Log) Effects(queue *jobs.Queue, of map[string]Effect) { l.effects = effects{queue, of} }

// caused is an event with an effect.
type caused struct {
	event   envelope.Event
	message proto.Message
	effect  Effect
}

// insert inserts the jobs that follow from the events of a transaction.
func (x effects) insert(ctx context.Context, conn *pgx.Conn, all []caused) error {
	var due []jobs.Job
	for _, c := range all {
		following, err := c.jobs()
		if err == nil {
			err = x.queue.Check(following...)
		}
		if err != nil {
			return pgerror.Data(fmt.Errorf("effects of %s: %w", c.event.Type, err))
		}
		due = append(due, following...)
	}
	if len(due) == 0 {
		return nil
	}
	return x.queue.Insert(ctx, openTx{conn}, due...)
}

// jobs calls the effect. It turns a panic into an error, so that only the write with this event fails.
func (c caused) jobs() (all []jobs.Job, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panicked: %v", p)
		}
	}()
	return c.effect(c.event, c.message), nil
}

// openTx is the transaction that is open on a connection, for functions that write in it but must not end it.
type openTx struct{ conn *pgx.Conn }

var (
	_           pgx.Tx = openTx{}
	errNotOwner        = errors.New("only the caller that began the transaction may end it")
)

func (t openTx) Begin(context.Context) (pgx.Tx, error) { return nil, errNotOwner }
func (t openTx) Commit(context.Context) error          { return errNotOwner }
func (t openTx) Rollback(context.Context) error        { return errNotOwner }
func (t openTx) LargeObjects() pgx.LargeObjects        { return pgx.LargeObjects{} }
func (t openTx) Conn() *pgx.Conn                       { return t.conn }

func (t openTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	return t.conn.CopyFrom(ctx, table, columns, from)
}

func (t openTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return t.conn.SendBatch(ctx, b)
}

func (t openTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return t.conn.Prepare(ctx, name, sql)
}

func (t openTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return t.conn.Exec(ctx, sql, args...)
}

func (t openTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return t.conn.Query(ctx, sql, args...)
}

func (t openTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return t.conn.QueryRow(ctx, sql, args...)
}

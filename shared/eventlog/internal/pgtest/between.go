package pgtest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// Between is a tracer of connections, for tests of race conditions. It looks for two consecutive statements of a
// connection: the first contains the text in the field First, and the second contains the text in the field Then.
// Before the second statement is sent, the tracer calls the function Do. It calls Do only after Arm, and once for each
// call of Arm.
type Between struct {
	First, Then string
	Do          func()

	armed atomic.Bool
	last  sync.Map // the last statement, by connection
}

// Arm makes the tracer call Do once.
func (b *Between) Arm() { b.armed.Store(true) }

// Done reports whether Do was called since the last call of Arm. Before the first call of Arm, Done returns true.
func (b *Between) Done() bool { return !b.armed.Load() }

func (b *Between) note(conn *pgx.Conn, statement string) {
	before, _ := b.last.Swap(conn, statement)
	last, _ := before.(string)
	if strings.Contains(last, b.First) && strings.Contains(statement, b.Then) && b.armed.CompareAndSwap(true, false) {
		b.Do()
	}
}

// TraceQueryStart implements pgx.QueryTracer.
func (b *Between) TraceQueryStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	b.note(conn, d.SQL)
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (*Between) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements pgx.BatchTracer.
func (b *Between) TraceBatchStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	for _, q := range d.Batch.QueuedQueries {
		b.note(conn, q.SQL)
	}
	return ctx
}

// TraceBatchQuery implements pgx.BatchTracer.
func (*Between) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements pgx.BatchTracer.
func (*Between) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// Package queryplan shows which tables a statement reads, and how many rows and pages. So a test can assert that these
// numbers stay small when tables are large.
package queryplan

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// Plan is a node in the plan of an executed statement.
type Plan struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Removed  float64 `json:"Rows Removed by Filter"`
	Hit      int64   `json:"Shared Hit Blocks"`
	Read     int64   `json:"Shared Read Blocks"`
	Plans    []Plan
}

// Explain executes a statement, rolls back what the statement has changed, and returns its plan. The server plans the
// statement for its arguments, as it does for the statements that a log executes with the mode eventlog.planned.
func Explain(t *testing.T, pool *pgxpool.Pool, statement string, args ...any) Plan {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	var plans []struct{ Plan Plan }
	require.NoError(t, tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+statement,
		append([]any{pgx.QueryExecModeCacheDescribe}, args...)...).Scan(&plans))
	return plans[0].Plan
}

// Walk calls the function visit for the node and all nodes below it.
func (p Plan) Walk(visit func(Plan)) {
	visit(p)
	for _, c := range p.Plans {
		c.Walk(visit)
	}
}

// RowsRead returns the number of rows that were read from tables and indexes, including those that a filter removed.
func (p Plan) RowsRead() (rows int64) {
	p.Walk(func(p Plan) {
		if p.Relation != "" {
			rows += int64((p.Rows + p.Removed) * p.Loops)
		}
	})
	return rows
}

// Scanned returns the tables that were read by a sequential scan.
func (p Plan) Scanned() (tables []string) {
	p.Walk(func(p Plan) {
		if p.Type == "Seq Scan" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// Tables returns the tables that the statement reads, including those in which it found no row.
func (p Plan) Tables() (tables []string) {
	p.Walk(func(p Plan) {
		if p.Relation != "" && p.Type != "ModifyTable" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// Heap returns the tables whose rows were read. It leaves out tables of which only an index was read.
func (p Plan) Heap() (tables []string) {
	p.Walk(func(p Plan) {
		if p.Relation != "" && p.Type != "Index Only Scan" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// Pages returns the number of pages that were read, from the server's cache or from disk.
func (p Plan) Pages() int64 { return p.Hit + p.Read }

// Package queryplan shows tests what a statement reads, so that they can bound that for large tables.
package queryplan

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// Plan is a step of a statement that was executed.
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

// Explain executes a statement as a log does, with a plan for its arguments, undoes what it did, and returns its plan.
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

// Walk calls visit for each step.
func (p Plan) Walk(visit func(Plan)) {
	visit(p)
	for _, c := range p.Plans {
		c.Walk(visit)
	}
}

// RowsRead returns how many rows of tables and indexes were read, whether found or filtered away.
func (p Plan) RowsRead() (rows int64) {
	p.Walk(func(p Plan) {
		if p.Relation != "" {
			rows += int64((p.Rows + p.Removed) * p.Loops)
		}
	})
	return rows
}

// Scanned returns the tables that were read as a whole.
func (p Plan) Scanned() (tables []string) {
	p.Walk(func(p Plan) {
		if p.Type == "Seq Scan" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// Tables returns the tables that were looked into, also where nothing was found.
func (p Plan) Tables() (tables []string) {
	p.Walk(func(p Plan) {
		if p.Relation != "" && p.Type != "ModifyTable" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// Heap returns the tables of which rows were read, not only an index.
func (p Plan) Heap() (tables []string) {
	p.Walk(func(p Plan) {
		if p.Relation != "" && p.Type != "Index Only Scan" {
			tables = append(tables, p.Relation)
		}
	})
	return tables
}

// Pages returns the number of pages that were looked at.
func (p Plan) Pages() int64 { return p.Hit + p.Read }

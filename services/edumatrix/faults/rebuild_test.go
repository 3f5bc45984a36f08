//go:build integration

package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// rebuild makes a running owner rebuild its projections, and returns the rows that differ from those before the
// rebuild.
func (m *mesh) rebuild(ctx context.Context, conn *pgx.Conn, owner string) (differences []string, err error) {
	tables, err := column(ctx, conn, `SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename <> ALL ($2)`,
		owner, eventlog.LogTables)
	if err != nil || len(tables) == 0 {
		return nil, err
	}
	before, err := dump(ctx, conn, owner, tables)
	if err != nil {
		return nil, err
	}
	pool, err := backend.Postgres{URL: m.stand.database(m.database, m.stand.postgres.Addr()), PoolMax: 4}.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	l, err := eventlog.Open(ctx, eventlog.Options{Owner: owner, Pool: pool, Catalog: m.catalog})
	if err != nil {
		return nil, err
	}
	names, err := column(ctx, conn, "SELECT name FROM "+owner+".projections")
	if err != nil {
		return nil, err
	}
	if err := reset(ctx, l, names, tables, nil); err != nil {
		return nil, err
	}
	if err := m.applied(ctx, conn, owner); err != nil {
		return nil, err
	}
	after, err := dump(ctx, conn, owner, tables)
	if err != nil {
		return nil, err
	}
	for _, row := range before {
		if _, found := slices.BinarySearch(after, row); !found {
			differences = append(differences, "a rebuild loses the row "+row)
		}
	}
	for _, row := range after {
		if _, found := slices.BinarySearch(before, row); !found {
			differences = append(differences, "only a rebuild produces the row "+row)
		}
	}
	return differences, nil
}

// reset empties tables and makes projections apply the log from the beginning. It empties the tables while the positions
// of all projections are locked: a projection that began earlier would lose the rows that it has already written.
func reset(ctx context.Context, l *eventlog.Log, projections, tables []string, tx pgx.Tx) error {
	if len(projections) == 0 {
		_, err := tx.Exec(ctx, "TRUNCATE "+strings.Join(tables, ", "))
		return err
	}
	return projection.Reset(ctx, l, projections[0], func(ctx context.Context, tx pgx.Tx) error {
		return reset(ctx, l, projections[1:], tables, tx)
	})
}

// applied waits until every projection of an owner has applied the whole log.
func (m *mesh) applied(ctx context.Context, conn *pgx.Conn, owner string) error {
	return poll(ctx, "projections of "+owner, func() (string, error) {
		behind, err := column(ctx, conn, strings.ReplaceAll(`
			SELECT format('%s is at %s of %s', name, position, head) FROM owner.projections,
			(SELECT coalesce(max(position), 0) AS head FROM owner.events) h WHERE position < head
			UNION ALL SELECT 'none has begun' WHERE NOT EXISTS (SELECT FROM owner.projections)`, "owner", owner))
		return strings.Join(behind, ", "), err
	})
}

// poll calls missing() until the call returns an empty string or an error. If ctx ends first, poll returns an error
// with the last result of missing().
func poll(ctx context.Context, what string, missing func() (string, error)) error {
	for {
		left, err := missing()
		if err != nil || left == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %s: %w", what, left, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// dump returns all rows of the tables as sorted text.
func dump(ctx context.Context, conn *pgx.Conn, schema string, tables []string) (rows []string, err error) {
	for _, table := range tables {
		some, err := column(ctx, conn, fmt.Sprintf("SELECT '%s ' || t::text FROM %s.%s t", table, schema, table))
		if err != nil {
			return nil, err
		}
		rows = append(rows, some...)
	}
	slices.Sort(rows)
	return rows, nil
}

func column(ctx context.Context, conn *pgx.Conn, query string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

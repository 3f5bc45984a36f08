package rebuild

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// TableDifference describes what a rebuild changed in a table.
type TableDifference struct {
	Table            string
	OldRows, NewRows int64
	Differ           int64
	Rows             []RowDifference // the first maxRowsShown rows that differ
}

// RowDifference is a row before and after a rebuild, as JSON. Old or New is empty if the row did not exist then. In a
// table without a primary key, a row that has changed counts as two: one that is gone and one that is new.
type RowDifference struct{ Old, New string }

// maxRowsShown is the maximum number of differing rows of a table that a rebuild reports.
const maxRowsShown = 50

const (
	sqlPrimaryKey = `SELECT a.attname FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = $1::regclass AND i.indisprimary ORDER BY array_position(i.indkey::int[], a.attnum::int)`
	// sqlCompareKeyed matches the old and the new version of a row by the primary key.
	sqlCompareKeyed = `SELECT coalesce(to_jsonb(o)::text, ''), coalesce(to_jsonb(n)::text, ''), count(*) OVER ()
FROM %[1]s o FULL JOIN %[2]s n ON %[3]s
WHERE o::text IS DISTINCT FROM n::text ORDER BY %[4]s LIMIT %[5]d`
	sqlCompare = `SELECT old, new, count(*) OVER () FROM (
  (SELECT to_jsonb(t)::text AS old, '' AS new FROM %[1]s t EXCEPT ALL SELECT to_jsonb(t)::text, '' FROM %[2]s t)
  UNION ALL
  (SELECT '', to_jsonb(t)::text FROM %[2]s t EXCEPT ALL SELECT '', to_jsonb(t)::text FROM %[1]s t)) d
ORDER BY old || new LIMIT %[3]d`
)

// compare compares the replaced tables with the tables that took their place, as of one snapshot.
func (s *shadow) compare(ctx context.Context, snapshot pgx.Tx) (all []TableDifference, err error) {
	for _, table := range s.tables {
		d := TableDifference{Table: table}
		old, now := qualified(s.old, table), qualified(s.o.Owner, table)
		err := snapshot.QueryRow(ctx, "SELECT (SELECT count(*) FROM "+old+"), (SELECT count(*) FROM "+now+")").
			Scan(&d.OldRows, &d.NewRows)
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", table, err)
		}
		statement, err := comparison(ctx, snapshot, old, now)
		if err != nil {
			return nil, fmt.Errorf("compare %s: %w", table, err)
		}
		found, err := snapshot.Query(ctx, statement)
		if err != nil {
			return nil, fmt.Errorf("compare %s: %w", table, err)
		}
		var row RowDifference
		_, err = pgx.ForEachRow(found, []any{&row.Old, &row.New, &d.Differ}, func() error {
			d.Rows = append(d.Rows, row)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("compare %s: %w", table, err)
		}
		all = append(all, d)
	}
	return all, nil
}

func comparison(ctx context.Context, tx pgx.Tx, old, now string) (string, error) {
	found, err := tx.Query(ctx, sqlPrimaryKey, now)
	if err != nil {
		return "", err
	}
	key, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return "", err
	}
	if len(key) == 0 {
		return fmt.Sprintf(sqlCompare, old, now, maxRowsShown), nil
	}
	var equal, order []string
	for _, column := range key {
		c := pgx.Identifier{column}.Sanitize()
		equal = append(equal, "o."+c+" = n."+c)
		order = append(order, "coalesce(o."+c+", n."+c+")")
	}
	return fmt.Sprintf(sqlCompareKeyed, old, now, strings.Join(equal, " AND "), strings.Join(order, ", "),
		maxRowsShown), nil
}

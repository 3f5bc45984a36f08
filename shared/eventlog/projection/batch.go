package projection

import (
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
)

// Statement is a statement that writes the rows of a batch.
type Statement struct {
	sql string
	key int // number of leading columns that form the key (see Projection.Statement); 0: there is no key
}

// sqlByIndex makes the server find rows by index lookups when it writes a batch. The statistics of a table that has
// grown quickly are outdated, and could otherwise make the server scan the whole table.
const sqlByIndex = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
  set_config('enable_mergejoin', 'off', true)`

// maxKey is the maximum number of columns of a key.
const maxKey = 4

// Batch collects the rows that follow from a batch of events.
type Batch struct{ rows map[*Statement]*rows }

// rows are the rows for one statement, in the order in which they were added.
type rows struct {
	all   [][]any // a removed row is nil
	byKey map[key]int
	kept  int
}

type key [maxKey]any

// Add adds a row to a statement: one value for each of its parameters. All values of a parameter have the same type. If
// the statement has a key, the row replaces an earlier row with the same key.
func (b *Batch) Add(s *Statement, values ...any) {
	r := b.rows[s]
	if r == nil {
		r = &rows{byKey: map[key]int{}}
		b.rows[s] = r
	}
	if s.key > 0 {
		k := keyOf(values[:s.key])
		if i, ok := r.byKey[k]; ok {
			r.all[i] = values
			return
		}
		r.byKey[k] = len(r.all)
	}
	r.all, r.kept = append(r.all, values), r.kept+1
}

// Row returns the row that this batch has for a statement and the given values of the statement's key, or nil if there
// is none.
func (b *Batch) Row(s *Statement, values ...any) []any {
	r := b.rows[s]
	if r == nil {
		return nil
	}
	if i, ok := r.byKey[keyOf(values)]; ok {
		return r.all[i]
	}
	return nil
}

// Remove removes the row that this batch has for a statement and the given values of the statement's key, if there is
// one.
func (b *Batch) Remove(s *Statement, values ...any) {
	r, k := b.rows[s], keyOf(values)
	if r == nil {
		return
	}
	if i, ok := r.byKey[k]; ok {
		delete(r.byKey, k)
		r.all[i], r.kept = nil, r.kept-1
	}
}

func keyOf(values []any) (k key) {
	copy(k[:], values)
	return k
}

// statements returns the statements that write the rows. The returned batch is empty if there are no rows.
func (b *Batch) statements(declared []*Statement) (*pgx.Batch, error) {
	batch := &pgx.Batch{}
	for _, s := range declared {
		r := b.rows[s]
		if r == nil || r.kept == 0 {
			continue
		}
		columns, err := r.columns()
		if err != nil {
			return nil, fmt.Errorf("rows for %.40q: %w", s.sql, err)
		}
		if batch.Len() == 0 {
			batch.Queue(sqlByIndex)
		}
		batch.Queue(s.sql, columns...)
	}
	return batch, nil
}

// columns returns the rows as one slice for each column.
func (r *rows) columns() (columns []any, err error) {
	var slices []reflect.Value
	for _, row := range r.all {
		if row == nil {
			continue
		}
		if slices == nil {
			for _, v := range row {
				slices = append(slices, reflect.MakeSlice(reflect.SliceOf(element(v).Type()), 0, r.kept))
			}
		}
		if len(row) != len(slices) {
			return nil, fmt.Errorf("a row has %d values, another has %d", len(row), len(slices))
		}
		for i, v := range row {
			e := element(v)
			if e.Type() != slices[i].Type().Elem() {
				return nil, fmt.Errorf("value %d is a %T in one row and a %s in another", i+1, v, slices[i].Type().Elem())
			}
			slices[i] = reflect.Append(slices[i], e)
		}
	}
	for _, s := range slices {
		columns = append(columns, s.Interface())
	}
	return columns, nil
}

// element returns a value as an element of its column. Positions and versions become int64, because pgx encodes slices
// of that type without reflection.
func element(v any) reflect.Value {
	e := reflect.ValueOf(v)
	if e.Kind() == reflect.Int64 {
		return reflect.ValueOf(e.Int())
	}
	return e
}

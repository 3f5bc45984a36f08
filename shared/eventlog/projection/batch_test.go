package projection

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBatch_WritesTheRowsOfEachStatementAtOnce(t *testing.T) {
	t.Parallel()
	p := Declare("p", Options{})
	first, second, third := p.Statement(0, "first"), p.Statement(2, "second"), p.Statement(1, "third")
	b := &Batch{rows: map[*Statement]*rows{}}
	at := time.Unix(1, 0)
	b.Add(second, "a", "x", int64(1))
	b.Add(first, "a", at)
	b.Add(second, "a", "y", int64(2))
	b.Add(second, "a", "x", int64(3)) // replaces the row with the value 1, which has the same key
	b.Add(first, "a", at)
	b.Add(third, "gone")
	require.Equal(t, []any{"a", "x", int64(3)}, b.Row(second, "a", "x"))
	require.Nil(t, b.Row(second, "b", "x"))
	b.Remove(third, "gone")
	b.Remove(third, "never")
	require.Nil(t, b.Row(third, "gone"))

	batch, err := b.statements(p.statements)
	require.NoError(t, err)
	require.Equal(t, 3, batch.Len(), "a statement without rows is left out")
	require.Equal(t, sqlByIndex, batch.QueuedQueries[0].SQL)
	require.Equal(t, "first", batch.QueuedQueries[1].SQL)
	require.Equal(t, []any{[]string{"a", "a"}, []time.Time{at, at}}, batch.QueuedQueries[1].Arguments)
	require.Equal(t, []any{[]string{"a", "a"}, []string{"x", "y"}, []int64{3, 2}}, batch.QueuedQueries[2].Arguments)

	b.Add(third, "again")
	b.Add(third, 7)
	_, err = b.statements(p.statements)
	require.ErrorContains(t, err, `rows for "third": value 1 is a int in one row and a string in another`)
}

package meshtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// Measured contains two percentiles of the duration of an operation, in microseconds, and the average number of rows in
// the operation's result.
type Measured struct {
	Name     string
	P50, P99 float64
	Rows     float64
}

// Measure repeats an operation up to 300 times within about 4 s, and at least 20 times.
func Measure(b testing.TB, name string, do func(ctx context.Context) (rows int, err error)) Measured {
	b.Helper()
	var took []float64
	rows := 0
	for begin := time.Now(); len(took) < 20 || len(took) < 300 && time.Since(begin) < 4*time.Second; {
		before := time.Now()
		n, err := do(b.Context())
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took, rows = append(took, float64(time.Since(before).Nanoseconds())/1000), rows+n
	}
	slices.Sort(took)
	return Measured{name, took[len(took)/2], took[len(took)*99/100], float64(rows) / float64(len(took))}
}

// perRow returns the median time per row of the result in microseconds, or the whole median time if the results have
// fewer than one row on average.
func (m Measured) perRow() float64 { return m.P50 / max(m.Rows, 1) }

// LogSizes prints, side by side, the measurements of the same operations at two sizes of the data. If the numbers of
// rows in two results differ much, the times cannot be compared, so LogSizes also prints the time per row.
func LogSizes(b testing.TB, smallSize, largeSize int, small, large []Measured) {
	b.Helper()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\n\tp50 µs of %d\tof %d\tratio\tp99 µs\t\tratio\trows\t\tp50 µs per row\t\tratio\t\n", smallSize,
		largeSize)
	for i, l := range large {
		s := small[i]
		_, _ = fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.1f\t%.0f\t%.0f\t%.1f\t%.0f\t%.0f\t", l.Name, s.P50, l.P50, l.P50/s.P50,
			s.P99, l.P99, l.P99/s.P99, s.Rows, l.Rows)
		if few, many := min(s.Rows, l.Rows), max(s.Rows, l.Rows); many > 1.2*few+1 {
			_, _ = fmt.Fprintf(w, "%.2f\t%.2f\t%.1f\t\n", s.perRow(), l.perRow(), l.perRow()/s.perRow())
		} else {
			_, _ = fmt.Fprint(w, "\t\t\t\n")
		}
	}
	_ = w.Flush() // writing to memory cannot fail
	b.Log(text.String())
}

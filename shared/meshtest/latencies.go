package meshtest

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Latencies are the latencies of ordinary users: of connecting, of a command until its outcome, and of a command until
// another user receives its event.
type Latencies struct{ Connect, Command, Deliver []time.Duration }

// Add appends further latencies.
func (l *Latencies) Add(more Latencies) {
	l.Connect = append(l.Connect, more.Connect...)
	l.Command = append(l.Command, more.Command...)
	l.Deliver = append(l.Deliver, more.Deliver...)
}

// ReportBeside prints the latencies of ordinary users without (quiet) and with (beside) a hostile user, and reports
// their ratios as metrics.
func ReportBeside(b *testing.B, quiet, beside Latencies) {
	b.Helper()
	for _, of := range []struct {
		what          string
		quiet, beside []time.Duration
	}{{"connect", quiet.Connect, beside.Connect}, {"command", quiet.Command, beside.Command},
		{"delivery", quiet.Deliver, beside.Deliver}} {
		line := of.what
		for _, percent := range []int{50, 99} {
			before, after := percentile(of.quiet, percent), percentile(of.beside, percent)
			line += fmt.Sprintf("  p%d %s quiet, %s beside: %.1f x", percent, before.Round(10*time.Microsecond),
				after.Round(10*time.Microsecond), float64(after)/float64(before))
			b.ReportMetric(float64(after)/float64(before), fmt.Sprintf("x-p%d-%s", percent, of.what))
		}
		b.Log(line)
	}
}

func percentile(all []time.Duration, percent int) time.Duration {
	slices.Sort(all)
	return all[len(all)*percent/100]
}

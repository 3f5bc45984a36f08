package eventlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkCommit compares group commits with the part "alone", in which each write has a transaction of its own.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("group/writers=%d", writers), func(b *testing.B) { benchmarkCommit(b, writers, false) })
	}
	b.Run("alone/writers=256", func(b *testing.B) { benchmarkCommit(b, 256, true) })
}

func benchmarkCommit(b *testing.B, writers int, alone bool) {
	l := fresh(b)
	var next atomic.Int64
	var all sync.WaitGroup
	times := make([][]time.Duration, writers)
	b.ResetTimer()
	for w := range writers {
		all.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					return
				}
				begun := time.Now()
				p, err := l.prepare(b.Context(), said(fmt.Sprint(n%1000), fmt.Sprint("c", n)))
				if err == nil {
					_, err = l.wait(b.Context(), &pendingWrite{ctx: b.Context(), prepared: p, alone: alone, outcome: make(chan writeOutcome, 1)})
				}
				if err != nil {
					b.Error(err)
					return
				}
				times[w] = append(times[w], time.Since(begun))
			}
		})
	}
	all.Wait()
	b.StopTimer()
	report(b, slices.Concat(times...))
}

func report(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	b.ReportMetric(float64(len(times))/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkCommitAt200 measures the time of a commit at 200 commits per second.
func BenchmarkCommitAt200(b *testing.B) {
	l := fresh(b)
	times := make([]time.Duration, b.N)
	var all sync.WaitGroup
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	b.ResetTimer()
	for n := range b.N {
		<-tick.C
		all.Go(func() {
			begun := time.Now()
			if _, err := l.Commit(context.Background(), said(fmt.Sprint(n%50), fmt.Sprint("c", n))); err != nil {
				b.Error(err)
			}
			times[n] = time.Since(begun)
		})
	}
	all.Wait()
	b.StopTimer()
	report(b, times)
}

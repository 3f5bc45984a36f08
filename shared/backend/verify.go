package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// checkTime is how long one check may take.
const checkTime = 15 * time.Second

// Result is the result of one check of one store.
type Result struct {
	Store, Check string
	OK           bool
	Warn         bool // the check succeeded, but something should be changed
	Detail       string
	Took         time.Duration
}

// Verify checks that the stores are available and meet the needs of the mesh.
type Verify struct {
	Postgres Postgres
	Redis    Redis
	Kafka    Kafka
	Topics   []catalog.Topic // the topics that the catalog declares
}

// Run runs all checks, one by one. A failed check does not prevent the other checks, but all checks of an unreachable
// store fail.
func (v Verify) Run(ctx context.Context) []Result {
	var all []Result
	all = append(all, verifyPostgres(ctx, v.Postgres)...)
	all = append(all, verifyRedis(ctx, v.Redis)...)
	return append(all, verifyKafka(ctx, v.Kafka, v.Topics)...)
}

// Passed reports whether no check failed.
func Passed(results []Result) bool {
	for _, r := range results {
		if !r.OK {
			return false
		}
	}
	return true
}

// Print writes the results as a table. The last line counts the checks that are ok, have a warning or failed.
func Print(w io.Writer, results []Result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, err := fmt.Fprintln(table, "STORE\tCHECK\tRESULT\tTOOK\tDETAIL")
	counts := map[string]int{}
	for _, r := range results {
		result := "ok"
		switch {
		case !r.OK:
			result = "FAILED"
		case r.Warn:
			result = "warning"
		}
		counts[result]++
		_, e := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.Store, r.Check, result,
			r.Took.Round(100*time.Microsecond), strings.ReplaceAll(r.Detail, "\n", "; "))
		err = errors.Join(err, e)
	}
	err = errors.Join(err, table.Flush())
	_, e := fmt.Fprintf(w, "%d checks: %d ok, %d with a warning, %d failed\n", len(results), counts["ok"],
		counts["warning"], counts["FAILED"])
	return errors.Join(err, e)
}

// finding is the result of a check that did not fail.
type finding struct {
	detail string
	warn   bool
}

// check is one check of a store. The first check of a store connects to it; the other checks run only if that succeeds.
type check struct {
	name string
	run  func(context.Context) (finding, error)
}

// perform runs the checks of one store.
func perform(ctx context.Context, store string, checks []check) []Result {
	var all []Result
	for _, c := range checks {
		if len(all) > 0 && !all[0].OK {
			all = append(all, Result{Store: store, Check: c.name, Detail: "not tried: the store was not reached"})
			continue
		}
		begun := time.Now()
		limited, cancel := context.WithTimeout(ctx, checkTime)
		f, err := c.run(limited)
		cancel()
		r := Result{Store: store, Check: c.name, OK: err == nil, Warn: f.warn, Detail: f.detail,
			Took: time.Since(begun)}
		if err != nil {
			r.Detail = err.Error()
		}
		all = append(all, r)
	}
	return all
}

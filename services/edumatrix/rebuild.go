package edumatrix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// statusDiffers is the exit status of a rebuild that found differing rows.
const statusDiffers = 3

// rebuild makes a service rebuild all its projections and its timers, or only the part that the arguments name. It
// prints how the new rows differ from the old ones.
func rebuild(ctx context.Context, t Terminal, args []string) error {
	f := flags("rebuild", t)
	rest, err := arguments(f, args)
	if err != nil {
		return err
	}
	if len(rest) < 1 || len(rest) > 2 {
		return t.wrongly("edumatrix rebuild needs SERVICE [PROJECTION]")
	}
	i, err := findInstallation(t)
	if err != nil {
		return err
	}
	service, projection := rest[0], strings.Join(rest[1:], "")
	operator, err := i.operator(service)
	if err != nil {
		return err
	}
	steps, err := operator.Rebuild(ctx, connect.NewRequest(&meshv1.RebuildRequest{Projection: projection}))
	if err != nil {
		return i.answered(service, err)
	}
	all, err := i.awaitRebuilt(service, steps, newProgress(t))
	var differ int64
	unknown := false
	for n, rebuilt := range all {
		if n > 0 {
			fmt.Fprintln(t.Out)
		}
		printRebuilt(t.Out, t.ink(), service, rebuilt)
		unknown = unknown || len(rebuilt.GetTables()) == 0
		differ += differing(rebuilt)
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted: the rows are unchanged, unless the swap had begun")
	case err != nil:
		return err
	case unknown:
		return errors.New("rebuilt, but the old rows could not be compared")
	case differ > 0:
		return &statusError{statusDiffers, fmt.Errorf("%d rows differed from the log and were replaced", differ)}
	}
	return nil
}

// awaitRebuilt displays the progress of a rebuild until it ends. It returns the results for the projections and timers
// that were rebuilt, even if a later step fails.
func (i *installation) awaitRebuilt(service string, steps *connect.ServerStreamForClient[meshv1.RebuildResponse],
	p *progress) (rebuilt []*meshv1.Rebuilt, err error) {
	for steps.Receive() {
		s := steps.Msg()
		if s.GetRebuilt() != nil {
			rebuilt = append(rebuilt, s.GetRebuilt())
			continue
		}
		p.at(s.GetStep(), catalog.Position(s.GetPosition()), catalog.Position(s.GetHead()))
	}
	p.end()
	err = i.answered(service, steps.Err())
	if err == nil && len(rebuilt) == 0 {
		err = fmt.Errorf("%s closed the call before the rebuild ended", service)
	}
	return rebuilt, errors.Join(err, steps.Close())
}

func differing(r *meshv1.Rebuilt) (rows int64) {
	for _, t := range r.GetTables() {
		rows += t.GetDiffer()
	}
	return rows
}

func printRebuilt(out io.Writer, ink ink, service string, r *meshv1.Rebuilt) {
	held := time.Duration(r.GetHeldMicroseconds()) * time.Microsecond
	fmt.Fprintf(out, "%s of %s rebuilt as of position %d; the log was held for %v\n\n",
		strings.Join(r.GetProjections(), ", "), service, r.GetPosition(), held.Round(100*time.Microsecond))
	if len(r.GetTables()) == 0 {
		fmt.Fprintln(out, printable(r.GetLeft()))
		return
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tOLD ROWS\tNEW ROWS\tDIFFER")
	for _, t := range r.GetTables() {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\n", t.GetTable(), t.GetOldRows(), t.GetNewRows(), t.GetDiffer())
	}
	_ = table.Flush() // a failure to write is not reported here
	fmt.Fprintln(out)
	for _, t := range r.GetTables() {
		printRows(out, ink, t)
	}
	if differing(r) == 0 {
		fmt.Fprintln(out, "equal, row for row")
	}
	if r.GetBehind() > 0 {
		fmt.Fprintf(out, "the old rows had stopped at position %d; see the service's log\n", r.GetBehind())
	}
	if r.GetLeft() != "" {
		fmt.Fprintf(out, "not cleaned up: %s\n", printable(r.GetLeft()))
	}
}

func printRows(out io.Writer, ink ink, t *meshv1.TableDifference) {
	if t.GetDiffer() == 0 {
		return
	}
	fmt.Fprintf(out, "--- %s, as it was\n+++ %s, from the log\n", t.GetTable(), t.GetTable())
	for _, row := range t.GetRows() {
		if row.GetOld() != "" {
			fmt.Fprintln(out, ink.paint(red, "- "+printable(row.GetOld())))
		}
		if row.GetNew() != "" {
			fmt.Fprintln(out, ink.paint(green, "+ "+printable(row.GetNew())))
		}
	}
	if more := t.GetDiffer() - int64(len(t.GetRows())); more > 0 {
		fmt.Fprintf(out, "… and %d more rows\n", more)
	}
	fmt.Fprintln(out)
}

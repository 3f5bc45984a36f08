package rebuild

import (
	"context"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// A rebuild waits for the log's lock. Meanwhile it must not keep an old snapshot, which would prevent VACUUM from
// removing old row versions.
func TestWaiting_LetsTheDatabaseVacuum(t *testing.T) {
	t.Parallel()
	for name, rebuild := range map[string]func(context.Context, *eventlog.Log) error{
		"projections": func(ctx context.Context, l *eventlog.Log) error {
			_, err := Projections(ctx, l, Options{Projections: []projection.Applier{&tally{}}})
			return err
		},
		"timers": func(ctx context.Context, l *eventlog.Log) error {
			_, err := Timers(ctx, l, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			// The wait must not end during the test, however slow the machine is.
			waiter := logtest.Running(t, pgtest.Named(t, url, "waiter"), tallying,
				func(o *eventlog.Options) { o.LockWait = time.Hour })
			pgtest.RequireNoSnapshot(t, url, waiter.LockKey("append"), false, func(ctx context.Context) error {
				return rebuild(ctx, waiter)
			})
		})
	}
}

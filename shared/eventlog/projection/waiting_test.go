package projection

import (
	"context"
	"errors"
	"testing"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// An instance waits for the lease of a projection. Meanwhile it must not keep an old snapshot, which would prevent
// VACUUM from removing old row versions.
func TestWaiting_LetsTheDatabaseVacuum(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	waiter := logtest.Running(t, pgtest.Named(t, url, "waiter"), counting)
	position := logtest.Commit(t, waiter, logtest.Said("1", "a")).Position
	pgtest.RequireNoSnapshot(t, url, waiter.LockKey("projection counts"), true, func(ctx context.Context) error {
		return followUntil(ctx, waiter, position)
	})
}

// followUntil follows the log with the projection "counts" until the projection has reached a position.
func followUntil(ctx context.Context, l *eventlog.Log, position catalog.Position) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Follow(ctx, l, &counts{}) }()
	err := WaitFor(ctx, l, "counts", position)
	stop()
	return errors.Join(err, <-ended)
}

package projection

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// counts is a projection that counts the events of each stream and stores the last version. Its rows show whether an
// event was left out or applied twice.
type counts struct {
	fail    func(events []envelope.Event) error // called after the rows are written
	applied atomic.Int64
}

func (*counts) Name() string { return "counts" }

func (c *counts) Apply(ctx context.Context, tx Tx, events []envelope.Event) error {
	for _, e := range events {
		_, err := tx.Exec(ctx, `INSERT INTO counts (stream, applied, last) VALUES ($1, 1, $2)
ON CONFLICT (stream) DO UPDATE SET applied = counts.applied + 1, last = $2`, e.Stream, e.Version)
		if err != nil {
			return err
		}
	}
	if c.fail != nil {
		if err := c.fail(events); err != nil {
			return err
		}
	}
	c.applied.Add(int64(len(events)))
	return nil
}

func counting(o *eventlog.Options) {
	o.Migrations = fstest.MapFS{"00001_counts.sql": {Data: []byte(`-- +goose Up
CREATE TABLE counts (stream text PRIMARY KEY, applied bigint NOT NULL, last bigint NOT NULL);`)}}
}

// checkCounts asserts that the projection of type counts has applied n events, each once, and has left out none.
func checkCounts(t *testing.T, l *eventlog.Log, n int64) {
	t.Helper()
	var applied, last int64
	err := l.Options().Pool.QueryRow(t.Context(), "SELECT sum(applied), sum(last) FROM chat.counts").Scan(&applied, &last)
	if err != nil || applied != n || last != n {
		t.Errorf("%d applied, last versions add up to %d, want %d, %v", applied, last, n, err)
	}
}

// following returns a follower that has the lease of a projection. The follower applies a batch only when the test
// calls applyNext.
func following(t testing.TB, l *eventlog.Log, p Applier) *follower {
	t.Helper()
	f := newFollower(l, p)
	lease, _, err := l.TakeLease(t.Context(), f.name, advisory.LeaseOptions{Renewal: time.Hour, Silence: time.Hour,
		Every: standbyPollInterval}) // the long times keep the lease on a busy machine
	if err != nil {
		t.Fatal(err)
	}
	f.lease = lease
	t.Cleanup(func() { lease.Release(context.Background()) })
	if err := f.check(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFollow_AppliesEachEventOnceDespiteFailures(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l := logtest.Running(t, url, counting)
	for i := range 40 {
		logtest.Commit(t, l, logtest.Said(fmt.Sprint(i%3), fmt.Sprint(i)))
	}
	var tries atomic.Int64
	p := &counts{fail: func([]envelope.Event) error {
		if tries.Add(1) <= 2 {
			return errors.New("mine")
		}
		return nil
	}}
	f := following(t, l, p)
	for range 2 {
		if _, err := f.applyNext(t.Context()); err == nil || errors.Is(err, retry.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	f.lease.Release(t.Context())
	other := logtest.Running(t, url, counting)
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, p) })
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, other, p) })
	for i := 40; i < 80; i++ {
		c := logtest.Commit(t, l, logtest.Said(fmt.Sprint(i%3), fmt.Sprint(i)))
		if err := WaitFor(t.Context(), other, "counts", c.Position); err != nil {
			t.Fatal(err)
		}
	}
	checkCounts(t, l, 80)
}

func TestFollow_WakesAtOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, other := logtest.Running(t, url, counting), logtest.Running(t, url, counting)
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, other, &counts{}) })
	var all time.Duration
	for i := range 20 {
		c := logtest.Commit(t, l, logtest.Said("1", fmt.Sprint(i)))
		begun := time.Now()
		if err := WaitFor(t.Context(), other, "counts", c.Position); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // at the first event, the instance may not listen for notifications yet
			all += time.Since(begun)
		}
	}
	t.Logf("applied after %v on average, by another instance", all/19)
	if all/19 > 200*time.Millisecond {
		t.Error("commits do not wake the projection")
	}
}

func TestFollow_ContinuesWhenTheApplyingInstanceFreezes(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, frozen := logtest.Running(t, url, counting), logtest.Instance(t, url, counting)
	logtest.Commit(t, l, logtest.Said("1", "a"))
	thaw := make(chan struct{})
	entered := make(chan struct{})
	f := following(t, frozen, &counts{fail: func([]envelope.Event) error {
		close(entered)
		<-thaw
		return nil
	}})
	var freezing sync.WaitGroup
	freezing.Go(func() {
		if _, err := f.applyNext(t.Context()); err == nil {
			t.Error("the frozen instance could still commit")
		}
	})
	<-entered
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, &counts{}) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := WaitFor(ctx, l, "counts", 1); err != nil {
		t.Error(err)
	}
	close(thaw)
	freezing.Wait()
	checkCounts(t, l, 1)
}

func TestReset_AppliesFromTheBeginning(t *testing.T) {
	t.Parallel()
	l := logtest.Running(t, pgtest.Database(t), counting)
	for i := range 30 {
		logtest.Commit(t, l, logtest.Said(fmt.Sprint(i%3), fmt.Sprint(i)))
	}
	p := &counts{}
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, p) })
	for range 2 {
		if err := WaitFor(t.Context(), l, "counts", 30); err != nil {
			t.Fatal(err)
		}
		checkCounts(t, l, 30)
		err := Reset(t.Context(), l, "counts", func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "TRUNCATE counts")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWaitFor_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	l := logtest.Running(t, pgtest.Database(t), counting)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := WaitFor(ctx, l, "counts", 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

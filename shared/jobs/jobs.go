// Package jobs runs effects outside the log: pushes, mail, thumbnails, the deletion of files. A job is inserted in the
// transaction that commits its event, so the job is stored if and only if the event is, except that a job with the key
// of an earlier job may be left out (see Job.Key). Any instance then runs the job, at least once: a worker must accept
// that a job runs again. If an attempt fails, the job is tried again after a growing delay, up to a maximum number of
// attempts (see Work). A job that has failed permanently is kept for an operator.
//
// A rebuild does not restore jobs. For a command that has to be decided at a later time, use a timer of the log instead
// of a job. A timer fires once, and never after it was canceled.
//
// The jobs are stored and run by River, with its tables in the owner's schema. A service without workers opens no
// Queue: it has no such tables and does not poll for jobs.
package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Args are the arguments of a job, encoded as JSON. They should contain only ids, because arguments are not redacted
// when events are. A worker reads texts and names when it runs.
type Args interface {
	// Kind is the kind of the job ("push.send"). It is stored with the job, so it must never change.
	Kind() string
}

// Job is an effect to run.
type Job struct {
	Args Args
	// Key identifies the job among the jobs of its kind. Another job with the same key is not inserted while the first
	// job waits or runs, or if the first job was completed within the last 24 hours. Empty: every job is inserted.
	Key string
	// After is the time before which the job does not run; zero: it may run at once. A job that is inserted before this
	// time may run up to about six seconds late.
	After time.Time
}

// Options configure a Queue.
type Options struct {
	// Owner is the service of the jobs, and the name of their schema, which must exist.
	Owner   string
	Pool    *pgxpool.Pool
	Workers *Workers
	// Grace is how long running jobs may take to end when Run is stopped, before their contexts end; 0: 8 s. An attempt
	// that is interrupted after Grace does not count, and another instance runs the job at once.
	Grace time.Duration
	// Rescue (0: 30 s) is added to the longest time-out of all workers. A job that runs for longer than the sum counts
	// as abandoned: its instance was probably killed. The queue searches for abandoned jobs every 30 s.
	Rescue time.Duration
	Log    *slog.Logger // nil: slog.Default
}

const (
	// maxRunning is the maximum number of jobs that an instance runs concurrently.
	maxRunning = 16
	// poll is how often an instance looks for jobs. The queue does not use NOTIFY, because the transaction that commits
	// the events would then hold a lock of the whole database cluster until the transaction is on disk.
	poll = time.Second
	// failedKept is how long a permanently failed job is kept for an operator.
	failedKept = 90 * 24 * time.Hour
)

// Queue holds the jobs of one owner. It is safe for concurrent use.
type Queue struct {
	o      Options
	client *river.Client[pgx.Tx]
}

// pollOnlyDriver is River's driver for pgx without its support for notifications.
type pollOnlyDriver struct{ *riverpgxv5.Driver }

func (pollOnlyDriver) SupportsListener() bool     { return false }
func (pollOnlyDriver) SupportsListenNotify() bool { return false }

var _ riverdriver.Driver[pgx.Tx] = pollOnlyDriver{}

// IsTable reports whether a table of an owner's schema belongs to the queue.
func IsTable(name string) bool { return strings.HasPrefix(name, "river_") }

// Open migrates the queue's tables, one instance at a time, and returns the queue.
func Open(ctx context.Context, o Options) (*Queue, error) {
	if o.Pool == nil || o.Owner == "" || o.Workers.Empty() {
		return nil, errors.New("jobs: a queue needs an owner, a pool and workers")
	}
	if o.Grace <= 0 {
		o.Grace = 8 * time.Second
	}
	if o.Rescue <= 0 {
		o.Rescue = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Log = o.Log.With("jobs", o.Owner)
	if err := migrate(ctx, o); err != nil {
		return nil, fmt.Errorf("jobs of %s: migrate: %w", o.Owner, err)
	}
	q := &Queue{o: o}
	workers, longest := river.NewWorkers(), time.Duration(0)
	for _, w := range o.Workers.kinds {
		if err := w.add(workers, o.Log); err != nil {
			return nil, fmt.Errorf("jobs of %s: %w", o.Owner, err)
		}
		longest = max(longest, w.timeout)
	}
	var err error
	q.client, err = river.NewClient(pollOnlyDriver{riverpgxv5.New(o.Pool)}, &river.Config{
		Schema: o.Owner, Workers: workers, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: maxRunning}},
		JobTimeout: longest, RescueStuckJobsAfter: longest + o.Rescue, SoftStopTimeout: o.Grace,
		FetchPollInterval: poll, PollOnly: true,
		// During a rolling update, older instances leave jobs of unknown kinds to newer ones.
		FetchOnlyKnownKinds:         true,
		CompletedJobRetentionPeriod: 24 * time.Hour, DiscardedJobRetentionPeriod: failedKept,
		CancelledJobRetentionPeriod: failedKept,
		// River logs failed attempts at the level info. The handler of type problems drops these lines, and worker.Work logs
		// failed attempts itself, without secrets.
		Logger: slog.New(problems{o.Log.Handler()}),
	})
	if err != nil {
		return nil, fmt.Errorf("jobs of %s: %w", o.Owner, err)
	}
	return q, nil
}

// problems is a handler that handles only warnings and errors.
type problems struct{ slog.Handler }

func (p problems) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && p.Handler.Enabled(ctx, level)
}

func (p problems) WithAttrs(attrs []slog.Attr) slog.Handler {
	return problems{p.Handler.WithAttrs(attrs)}
}
func (p problems) WithGroup(name string) slog.Handler { return problems{p.Handler.WithGroup(name)} }

func migrate(ctx context.Context, o Options) error {
	lock, err := pgx.ConnectConfig(ctx, o.Pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer lock.Close(context.WithoutCancel(ctx)) // closing releases the lock
	if err := advisory.Await(ctx, lock, advisory.Key("jobs/"+o.Owner+"/migrate"), 300*time.Millisecond); err != nil {
		return err
	}
	m, err := rivermigrate.New(riverpgxv5.New(o.Pool), &rivermigrate.Config{Schema: o.Owner,
		Logger: slog.New(problems{o.Log.Handler()})})
	if err != nil {
		return err
	}
	done, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	if err == nil && len(done.Versions) > 0 {
		o.Log.InfoContext(ctx, "migrated the tables of jobs", "versions", len(done.Versions))
	}
	return err
}

// Check returns an error if a job cannot be inserted: its kind has no worker, or its arguments cannot be encoded.
func (q *Queue) Check(all ...Job) error {
	_, err := q.encode(all)
	return err
}

// Insert inserts jobs in a transaction, except those that Job.Key excludes. The jobs can run when the transaction is
// committed.
func (q *Queue) Insert(ctx context.Context, tx pgx.Tx, all ...Job) error {
	params, err := q.encode(all)
	if err == nil && len(params) > 0 {
		_, err = q.client.InsertManyTx(ctx, tx, params)
	}
	if err != nil {
		return fmt.Errorf("insert %d jobs of %s: %w", len(all), q.o.Owner, err)
	}
	return nil
}

// stored contains the arguments of a job as they are stored. River's uniqueness depends on the kind and the key only.
type stored struct {
	Key  string          `json:"key,omitempty" river:"unique"`
	Args json.RawMessage `json:"args"`
	kind string
}

func (s stored) Kind() string { return s.kind }

func (q *Queue) encode(all []Job) (params []river.InsertManyParams, err error) {
	type name struct{ kind, key string }
	seen := map[name]bool{}
	for _, j := range all {
		s := stored{Key: j.Key, kind: j.Args.Kind()}
		w, ok := q.o.Workers.kinds[s.kind]
		if !ok {
			return nil, fmt.Errorf("there is no worker for jobs of the kind %q", s.kind)
		}
		if s.Args, err = json.Marshal(j.Args); err != nil {
			return nil, fmt.Errorf("encode a job of the kind %q: %w", s.kind, err)
		}
		if j.Key != "" && seen[name{s.kind, j.Key}] {
			continue
		}
		seen[name{s.kind, j.Key}] = true
		params = append(params, river.InsertManyParams{Args: s, InsertOpts: &river.InsertOpts{MaxAttempts: w.attempts,
			ScheduledAt: j.After, UniqueOpts: river.UniqueOpts{ByArgs: j.Key != ""}}})
	}
	return params, nil
}

// Run runs jobs until ctx ends. Jobs that are running at that time may end within Options.Grace; after that their
// contexts end. A job that continues nevertheless is left behind, and runs again once it counts as abandoned (see
// Options.Rescue).
func (q *Queue) Run(ctx context.Context) error {
	for {
		err := q.client.Start(ctx)
		if err == nil {
			break
		}
		q.o.Log.WarnContext(ctx, "jobs cannot run, retrying", "error", clean(err.Error()))
		if !retry.Sleep(ctx, time.Second) {
			return nil
		}
	}
	stopped := q.client.Stopped()
	<-ctx.Done()
	select {
	case <-stopped:
	case <-time.After(q.o.Grace + time.Second):
		q.o.Log.WarnContext(ctx, "jobs are still running after their contexts ended")
	}
	return nil
}

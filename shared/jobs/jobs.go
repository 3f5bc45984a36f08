// Package jobs brings about effects outside the log: pushes, mail, thumbnails, the deletion of bytes. A job is inserted in
// the transaction that commits what it follows from, so there is one if and only if that is committed, and is then done
// by whichever instance fetches it, at least once: a worker has to bear being run again for what it has done already.
// Failed attempts are repeated with growing delays, up to a bound; a job that has failed for good is kept for an operator.
//
// Jobs lie beyond what a rebuild gives. A command that is to be decided at a time is a timer of the log instead, which
// fires once and can be cancelled exactly.
//
// It is River, in the owner's schema. A process that has no workers opens no Queue, and pays nothing.
package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/sleep"
)

// Args are what a job is about, encoded as JSON. They name things by their ids: they are neither redacted nor rebuilt
// with the events that they come of, so a worker reads texts and names when it runs.
type Args interface {
	// Kind names what is to be done ("push.send"). It is kept with the job, so it never changes.
	Kind() string
}

// Job is an effect to bring about.
type Job struct {
	Args Args
	// Key identifies the job among those of its kind: another one with the same key is not inserted while the first one
	// waits, runs, or was done within the last 24 hours. Empty: every one is inserted.
	Key string
	// After is the time before which the job does not run; zero: at once. Jobs that are inserted ahead of their time may
	// run up to about six seconds late.
	After time.Time
}

// Options describe whose jobs a Queue holds.
type Options struct {
	// Owner is the service whose jobs these are, and the name of the schema that they are in. The schema exists.
	Owner   string
	Pool    *pgxpool.Pool
	Workers *Workers
	// Grace is how long running jobs may take to end when Run is stopped, before their contexts end; 0: 8 s. The attempt
	// of a job that is interrupted so does not count, and another instance has it at once.
	Grace time.Duration
	// Rescue is how long beyond the longest time-out of all workers nothing was heard of a job before it counts as
	// abandoned, because its instance was killed; 0: 30 s. It is looked for every 30 s.
	Rescue time.Duration
	Log    *slog.Logger // nil: slog.Default
}

const (
	// maxRunning is how many jobs an instance has under way.
	maxRunning = 16
	// poll is how often an instance looks for jobs. It is not notified: NOTIFY holds a lock of the whole database cluster
	// until its transaction has been flushed, which would be that of the events.
	poll = time.Second
	// failedKept is how long a job that has failed for good waits for an operator.
	failedKept = 90 * 24 * time.Hour
)

// Queue holds the jobs of one owner. It is safe for concurrent use.
type Queue struct {
	o      Options
	client *river.Client[pgx.Tx]
}

// quiet is the driver without notifications.
type quiet struct{ *riverpgxv5.Driver }

func (quiet) SupportsListener() bool     { return false }
func (quiet) SupportsListenNotify() bool { return false }

var _ riverdriver.Driver[pgx.Tx] = quiet{}

// Open migrates the tables of the queue, one instance at a time.
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
	q.client, err = river.NewClient(quiet{riverpgxv5.New(o.Pool)}, &river.Config{
		Schema: o.Owner, Workers: workers, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: maxRunning}},
		JobTimeout: longest, RescueStuckJobsAfter: longest + o.Rescue, SoftStopTimeout: o.Grace,
		FetchPollInterval: poll, PollOnly: true,
		// While a release is rolled out, older instances leave what they do not know to the newer ones.
		FetchOnlyKnownKinds:         true,
		CompletedJobRetentionPeriod: 24 * time.Hour, DiscardedJobRetentionPeriod: failedKept,
		CancelledJobRetentionPeriod: failedKept,
		// The outcome of each attempt is logged here, without secrets.
		Logger: slog.New(problems{o.Log.Handler()}),
	})
	if err != nil {
		return nil, fmt.Errorf("jobs of %s: %w", o.Owner, err)
	}
	return q, nil
}

// problems passes warnings and errors on.
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
	defer lock.Close(context.WithoutCancel(ctx)) // which releases the lock
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

// Check reports why a job cannot be inserted: its kind has no worker, or its arguments cannot be encoded.
func (q *Queue) Check(all ...Job) error {
	_, err := q.encode(all)
	return err
}

// Insert inserts jobs in a transaction. They run once it is committed.
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

// stored are the arguments of a job as they are kept. The key alone makes it unique.
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
			return nil, fmt.Errorf("no worker does jobs of the kind %q", s.kind)
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

// Run does jobs until ctx ends. Those that are running then may end within the grace, then their contexts end; one that
// goes on nevertheless is left, and rescued later.
func (q *Queue) Run(ctx context.Context) error {
	for {
		err := q.client.Start(ctx)
		if err == nil {
			break
		}
		q.o.Log.WarnContext(ctx, "jobs wait", "error", clean(err.Error()))
		if !sleep.For(ctx, time.Second) {
			return nil
		}
	}
	stopped := q.client.Stopped()
	<-ctx.Done()
	select {
	case <-stopped:
	case <-time.After(q.o.Grace + time.Second):
		q.o.Log.WarnContext(ctx, "jobs do not end, although their contexts have")
	}
	return nil
}

//go:build integration

package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

type letter struct {
	To string `json:"to"`
}

func (letter) Kind() string { return "letter" }

type parcel struct{}

func (parcel) Kind() string { return "parcel" }

// bench is one instance of a service that has a queue of jobs.
type bench struct {
	t    *testing.T
	pool *pgxpool.Pool
	q    *Queue
	log  *lines
}

// lines collects the output of a logger or of a process.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newBench(t *testing.T, url string, w *Workers, change ...func(*Options)) *bench {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(t.Context(), `CREATE SCHEMA IF NOT EXISTS toy; CREATE SCHEMA IF NOT EXISTS other`)
	require.NoError(t, err)
	b := &bench{t: t, pool: pool, log: &lines{}}
	o := Options{Owner: "toy", Pool: pool, Workers: w, Log: slog.New(slog.NewTextHandler(b.log, nil))}
	for _, f := range change {
		f(&o)
	}
	b.q, err = Open(t.Context(), o)
	require.NoError(t, err)
	return b
}

// runs makes the instance run jobs until the test ends or stop is called.
func (b *bench) runs() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.q.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); require.NoError(b.t, <-ended) })
	b.t.Cleanup(stop)
	return stop
}

func (b *bench) insert(all ...Job) {
	b.t.Helper()
	require.NoError(b.t, pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) error {
		return b.q.Insert(b.t.Context(), tx, all...)
	}))
}

func (b *bench) count(where string) (n int) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), "SELECT count(*) FROM toy.river_job WHERE "+where).Scan(&n))
	return n
}

// doing returns workers that run jobs of kind letter by calling the function do.
func doing(do func(context.Context, Attempt[letter]) error) *Workers {
	w := &Workers{}
	Add(w, Work[letter]{Do: do})
	return w
}

func TestInsert_IsPartOfTheTransaction(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var done []string
	b := newBench(t, meshtest.Postgres(t), doing(func(_ context.Context, j Attempt[letter]) error {
		mu.Lock()
		defer mu.Unlock()
		done = append(done, j.Args.To)
		return nil
	}))
	b.runs()
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.q.Insert(t.Context(), tx, Job{Args: letter{"nobody"}}))
	require.NoError(t, tx.Rollback(t.Context()))
	b.insert(Job{Args: letter{"ann"}}, Job{Args: letter{"bob"}})
	meshtest.Eventually(t, "both jobs are done", func() bool { return b.count("state = 'completed'") == 2 })
	mu.Lock()
	defer mu.Unlock()
	require.ElementsMatch(t, []string{"ann", "bob"}, done)
	require.Equal(t, 2, b.count("true"))
}

// Several jobs of one kind with the same key are inserted: in one call, in concurrent transactions, and after the job
// is done. Only the first must be stored. A job of another kind may have the same key.
func TestInsert_AKeyIdentifiesOneJob(t *testing.T) {
	t.Parallel()
	w := doing(func(context.Context, Attempt[letter]) error { return nil })
	Add(w, Work[parcel]{Do: func(context.Context, Attempt[parcel]) error { return nil }})
	b := newBench(t, meshtest.Postgres(t), w)
	b.insert(Job{Args: letter{"ann"}, Key: "1"}, Job{Args: letter{"bob"}, Key: "1"}, Job{Args: parcel{}, Key: "1"})
	var racing sync.WaitGroup
	for range 8 {
		racing.Go(func() { b.insert(Job{Args: letter{"carol"}, Key: "1"}, Job{Args: letter{"carol"}, Key: "2"}) })
	}
	racing.Wait()
	require.Equal(t, 2, b.count("kind = 'letter'"))
	require.Equal(t, 1, b.count("kind = 'parcel'"))
	b.insert(Job{Args: letter{"ann"}}, Job{Args: letter{"ann"}})
	require.Equal(t, 4, b.count("kind = 'letter'"), "without a key, every job is inserted")
	b.runs()
	meshtest.Eventually(t, "all jobs are done", func() bool { return b.count("state = 'completed'") == 5 })
	b.insert(Job{Args: letter{"ann"}, Key: "1"})
	require.Equal(t, 4, b.count("kind = 'letter'"), "a job that is done is not inserted again")
}

func TestInsert_RefusesAJobWithoutAWorker(t *testing.T) {
	t.Parallel()
	b := newBench(t, meshtest.Postgres(t), doing(func(context.Context, Attempt[letter]) error { return nil }))
	require.ErrorContains(t, b.q.Check(Job{Args: parcel{}}), `there is no worker for jobs of the kind "parcel"`)
}

func TestQueue_EachOwnerHasItsOwn(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	var mine, others atomic.Int64
	one := newBench(t, url, doing(func(context.Context, Attempt[letter]) error { mine.Add(1); return nil }))
	other := newBench(t, url, doing(func(context.Context, Attempt[letter]) error { others.Add(1); return nil }),
		func(o *Options) { o.Owner = "other" })
	one.runs()
	other.runs()
	one.insert(Job{Args: letter{"ann"}, Key: "1"})
	other.insert(Job{Args: letter{"ann"}, Key: "1"})
	meshtest.Eventually(t, "both jobs are done", func() bool { return mine.Load() == 1 && others.Load() == 1 })
	// Instances find new jobs by polling, and must not use a connection to listen for notifications.
	require.Zero(t, func() (n int) {
		require.NoError(t, one.pool.QueryRow(t.Context(),
			`SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database()`).Scan(&n))
		return n
	}())
}

// Four instances start at the same time on a new schema. All must start: they migrate the schema one after the other.
func TestOpen_SeveralAtOnce(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), "CREATE SCHEMA toy")
	require.NoError(t, err)
	var opening sync.WaitGroup
	for range 4 {
		opening.Go(func() {
			_, err := Open(t.Context(), Options{Owner: "toy", Pool: pool,
				Workers: doing(func(context.Context, Attempt[letter]) error { return nil })})
			if err != nil {
				t.Error(err)
			}
		})
	}
	opening.Wait()
}

// A job fails on every attempt, and its error contains secrets. The job must be tried again, and then be listed for an
// operator, who can retry or drop it. Neither the logged lines nor the list may contain the secrets.
func TestFailed_IsListedRetriedAndDropped(t *testing.T) {
	t.Parallel()
	var mended atomic.Bool
	w := &Workers{}
	Add(w, Work[letter]{Attempts: 2, Do: func(_ context.Context, j Attempt[letter]) error {
		if mended.Load() {
			return nil
		}
		return fmt.Errorf("Post \"https://user:pw@push.example/secret-path?sig=abc\" of %d: Bearer abc.def \x00gone", j.Number)
	}})
	Add(w, Work[parcel]{Do: func(context.Context, Attempt[parcel]) error { return Final(errors.New("no such address")) }})
	b := newBench(t, meshtest.Postgres(t), w)
	b.runs()
	b.insert(Job{Args: letter{"ann"}, Key: "to ann"}, Job{Args: parcel{}})
	var failed []Failed
	meshtest.Eventually(t, "both jobs have failed permanently", func() bool {
		var err error
		failed, err = b.q.ListFailed(t.Context(), 0, 10)
		require.NoError(t, err)
		return len(failed) == 2
	})
	l, p := failed[0], failed[1]
	require.Equal(t, "letter", l.Kind)
	require.Equal(t, "to ann", l.Key)
	require.Equal(t, 2, l.Attempts)
	require.Equal(t, `Post "https://push.example" of 2: Bearer [credential] gone`, l.Error)
	require.Equal(t, "no such address", p.Error)
	require.Equal(t, 1, p.Attempts, "a final error is not tried again")
	for _, secret := range []string{"secret-path", "pw@", "sig=", "abc.def"} {
		require.NotContains(t, b.log.String(), secret)
		require.Zero(t, b.count("errors::text LIKE '%"+secret+"%'"))
	}
	require.Equal(t, 2, strings.Count(b.log.String(), "a job has failed permanently"))

	require.NoError(t, b.q.Drop(t.Context(), p.ID))
	mended.Store(true)
	require.NoError(t, b.q.Retry(t.Context(), l.ID))
	meshtest.Eventually(t, "the job is done", func() bool { return b.count("state = 'completed'") == 1 })
	require.ErrorContains(t, b.q.Retry(t.Context(), l.ID), "has not failed permanently: it is completed")
	require.ErrorContains(t, b.q.Drop(t.Context(), p.ID), "no job")
	failed, err := b.q.ListFailed(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Empty(t, failed)
}

// A job has failed, and another job with the same key was inserted. An operator retries the failed job, and must get an
// error that names the reason.
func TestFailed_CannotBeRetriedWhileItsKeyIsTaken(t *testing.T) {
	t.Parallel()
	var mended atomic.Bool
	b := newBench(t, meshtest.Postgres(t), doing(func(context.Context, Attempt[letter]) error {
		if mended.Load() {
			return nil
		}
		return Final(errors.New("no"))
	}))
	b.runs()
	b.insert(Job{Args: letter{"ann"}, Key: "1"})
	meshtest.Eventually(t, "the job has failed", func() bool { return b.count("state = 'cancelled'") == 1 })
	mended.Store(true)
	b.insert(Job{Args: letter{"ann"}, Key: "1"})
	meshtest.Eventually(t, "the other job is done", func() bool { return b.count("state = 'completed'") == 1 })
	failed, err := b.q.ListFailed(t.Context(), 0, 10)
	require.NoError(t, err)
	require.ErrorContains(t, b.q.Retry(t.Context(), failed[0].ID), "another job with the key")
}

func TestWorker_APanicFailsOnlyItsJob(t *testing.T) {
	t.Parallel()
	b := newBench(t, meshtest.Postgres(t), doing(func(_ context.Context, j Attempt[letter]) error {
		if j.Args.To == "bad" && j.Number == 1 {
			panic("at https://push.example/secret-path")
		}
		return nil
	}))
	b.runs()
	b.insert(Job{Args: letter{"bad"}}, Job{Args: letter{"good"}})
	meshtest.Eventually(t, "the second attempt of the bad job is done", func() bool { return b.count("state = 'completed'") == 2 })
	require.Equal(t, 1, b.count("attempt = 2 AND errors::text LIKE '%panic: at https://push.example%'"))
	require.NotContains(t, b.log.String(), "secret-path")
}

func TestWorker_TimesOut(t *testing.T) {
	t.Parallel()
	w := &Workers{}
	Add(w, Work[letter]{Timeout: 100 * time.Millisecond, Do: func(ctx context.Context, j Attempt[letter]) error {
		if j.Number > 1 {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	b := newBench(t, meshtest.Postgres(t), w)
	b.runs()
	b.insert(Job{Args: letter{"ann"}})
	meshtest.Eventually(t, "the second attempt is done", func() bool { return b.count("state = 'completed' AND attempt = 2") == 1 })
}

func TestJob_WaitsForItsTime(t *testing.T) {
	t.Parallel()
	var early atomic.Bool
	due := time.Now().Add(2 * time.Second)
	b := newBench(t, meshtest.Postgres(t), doing(func(context.Context, Attempt[letter]) error {
		if time.Now().Before(due) {
			early.Store(true)
		}
		return nil
	}))
	b.runs()
	b.insert(Job{Args: letter{"ann"}, After: due})
	meshtest.Eventually(t, "the job is done", func() bool { return b.count("state = 'completed'") == 1 })
	require.False(t, early.Load())
}

// Run is stopped while a job is running. Run must wait for this job and must not start another one.
func TestRun_StopsGracefully(t *testing.T) {
	t.Parallel()
	begun, end := make(chan struct{}, 10), make(chan struct{})
	b := newBench(t, meshtest.Postgres(t), doing(func(context.Context, Attempt[letter]) error {
		begun <- struct{}{}
		<-end
		return nil
	}), func(o *Options) { o.Grace = time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.q.Run(ctx) }()
	b.insert(Job{Args: letter{"ann"}})
	<-begun
	cancel()
	b.insert(Job{Args: letter{"bob"}})
	select {
	case <-ended:
		t.Fatal("Run returned before the job had ended")
	case <-time.After(100 * time.Millisecond): // Run has not returned within this time
	}
	close(end)
	require.NoError(t, <-ended)
	require.Equal(t, 1, b.count("state = 'completed'"))
	require.Equal(t, 1, b.count("state = 'available' AND attempt = 0"))
}

// Run is stopped, and a job does not end within Options.Grace. The job must be interrupted, and another instance must
// run it at once. The interrupted attempt must not count.
func TestRun_InterruptsJobsAfterTheGrace(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	var again atomic.Bool
	begun := make(chan struct{}, 10)
	do := func(ctx context.Context, j Attempt[letter]) error {
		if again.Load() {
			return nil
		}
		begun <- struct{}{}
		<-ctx.Done()
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
	b := newBench(t, url, doing(do), func(o *Options) { o.Grace = 50 * time.Millisecond })
	stop := b.runs()
	b.insert(Job{Args: letter{"ann"}})
	<-begun
	stop()
	require.Equal(t, 1, b.count("state = 'available' AND attempt = 0 AND errors IS NULL"))
	again.Store(true)
	newBench(t, url, doing(do)).runs()
	meshtest.Eventually(t, "the job is done", func() bool { return b.count("state = 'completed' AND attempt = 1") == 1 })
}

// killable is the environment variable with which TestRun_KilledInTheMiddleOfAJob starts itself in a second process.
// The second process runs a job that never ends, until the first process kills it.
const killable = "JOBS_TEST_KILLABLE"

// A process is killed while it runs a job. Another process must run the job again.
func TestRun_KilledInTheMiddleOfAJob(t *testing.T) {
	t.Parallel()
	url, killed := os.Getenv(killable), true
	if url == "" {
		url, killed = meshtest.Postgres(t), false
	}
	w := &Workers{}
	Add(w, Work[letter]{Timeout: 2 * time.Second, Do: func(ctx context.Context, j Attempt[letter]) error {
		if killed {
			fmt.Println("begun")
			select {}
		}
		return nil
	}})
	b := newBench(t, url, w, func(o *Options) { o.Rescue = time.Second })
	if killed {
		_ = b.q.Run(context.Background())
	}
	b.insert(Job{Args: letter{"ann"}})
	child := exec.Command(os.Args[0], "-test.run=^TestRun_KilledInTheMiddleOfAJob$", "-test.v")
	child.Env = append(os.Environ(), killable+"="+url)
	var output lines
	child.Stdout, child.Stderr = &output, &output
	require.NoError(t, child.Start())
	meshtest.Eventually(t, "the child has begun", func() bool { return strings.Contains(output.String(), "begun") })
	require.NoError(t, child.Process.Kill())
	_ = child.Wait() // returns an error, because the process was killed
	require.Equal(t, 1, b.count("state = 'running'"))
	b.runs()
	meshtest.Eventually(t, "the job is done", func() bool { return b.count("state = 'completed' AND attempt = 2") == 1 })
}

package projection

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// asked is a connection that counts the requests to PostgreSQL, by counting writes. pgx sends a request in one write
// unless the request is large.
type asked struct {
	net.Conn
	times *atomic.Int64
}

func (c asked) Write(b []byte) (int, error) {
	c.times.Add(1)
	return c.Conn.Write(b)
}

// heard is a tracer of pgx that records the statements of an instance.
type heard struct {
	mu         sync.Mutex
	statements []string
}

func (h *heard) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	h.add(d.SQL)
	return ctx
}

func (h *heard) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (h *heard) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	for _, q := range d.Batch.QueuedQueries {
		h.add(q.SQL)
	}
	return ctx
}

func (h *heard) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (h *heard) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (h *heard) add(statement string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.statements = append(h.statements, statement)
}

// take returns the statements since the last call.
func (h *heard) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.statements
	h.statements = nil
	return all
}

// configured returns an option that gives an instance a pool of its own. The function change edits the configuration of
// that pool.
func configured(t testing.TB, change func(*pgxpool.Config)) func(*eventlog.Options) {
	return func(o *eventlog.Options) {
		config := o.Pool.Config()
		change(config)
		p, err := pgxpool.NewWithConfig(t.Context(), config)
		require.NoError(t, err)
		t.Cleanup(p.Close)
		o.Pool = p
	}
}

// learn makes an instance read the log's newest position, over a connection of the test. In an instance that runs, the
// listener for notifications (Log.listen) reads it.
func learn(t testing.TB, url string, l *eventlog.Log) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = l.ReadHead(t.Context(), conn)
	require.NoError(t, err)
}

// A follower applies a batch in three round trips: one begins the transaction and reads the events, one executes the
// statement of Apply, and one saves the position and commits.
func TestFollow_AppliesABatchInThreeRoundTrips(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l := logtest.Running(t, url, counting)
	var times atomic.Int64
	follows := logtest.Instance(t, url, counting, configured(t, func(c *pgxpool.Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return asked{conn, &times}, err
		}
	}))
	f := following(t, follows, &counts{})
	for i := range 3 {
		logtest.Commit(t, l, logtest.Said("1", fmt.Sprint(i)))
		learn(t, url, follows)
		before := times.Load()
		applied, err := f.applyNext(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, applied)
		if i > 0 { // the first batch takes more round trips, to prepare the statements
			assert.Equal(t, int64(3), times.Load()-before)
		}
	}
	before := times.Load()
	f.checked = time.Now()
	applied, err := f.applyNext(t.Context())
	require.NoError(t, err)
	assert.Zero(t, applied)
	assert.Zero(t, times.Load()-before, "no request is sent if nothing was committed")
	checkCounts(t, l, 3)
	var mode string
	require.NoError(t, f.lease.Lend(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SHOW synchronous_commit").Scan(&mode)
	}))
	assert.Equal(t, "off", mode, "a projection can be applied again, so its commits do not wait for the disk")
}

// One instance applies a projection, and another stands by while events are committed. The statements of the standby
// must be only attempts to get the projection's lease.
func TestFollow_AStandbyReadsOnlyTheLease(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l := logtest.Running(t, url, counting)
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, &counts{}) })
	require.NoError(t, WaitFor(t.Context(), l, "counts", logtest.Commit(t, l, logtest.Said("1", "first")).Position))
	var h heard
	standby := logtest.Instance(t, url, counting, configured(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &h }))
	h.take() // discard the statements of migrations
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, standby, &counts{}) })
	meshtest.Eventually(t, "the instance stands by", func() bool {
		for _, s := range h.take() {
			if strings.Contains(s, "pg_try_advisory_lock") {
				return true
			}
		}
		return false
	})
	for i := range 20 {
		c := logtest.Commit(t, l, logtest.Said("1", fmt.Sprint(i)))
		learn(t, url, standby)
		require.NoError(t, WaitFor(t.Context(), l, "counts", c.Position))
	}
	var since []string
	meshtest.Eventually(t, "the instance tries again to get the lease", func() bool {
		since = append(since, h.take()...)
		return len(since) > 0
	})
	for _, s := range since {
		assert.Contains(t, s, "pg_try_advisory_lock")
	}
}

// The instance that applies a projection ends, and so releases its lease. Another instance must take over without
// waiting until the session of the first has been silent for LeaseOptions.Silence, which is an hour here.
func TestFollow_AnotherInstanceTakesOver(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, other := logtest.Instance(t, url, counting), logtest.Running(t, url, counting)
	pgtest.During(t, l.Run)
	f := newFollower(l, &counts{})
	f.silence = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); f.run(ctx) }()
	require.NoError(t, WaitFor(t.Context(), l, "counts", logtest.Commit(t, l, logtest.Said("1", "a")).Position))
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, other, &counts{}) })
	cancel()
	<-ended
	patient, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	require.NoError(t, WaitFor(patient, l, "counts", logtest.Commit(t, l, logtest.Said("1", "b")).Position), "another instance follows")
	checkCounts(t, l, 2)
}

// loseApplied deletes the rows of the projection "counts", sets the projection's position to 0, and ends all sessions.
// A crash of PostgreSQL has the same effect if the rows were not on disk yet.
func loseApplied(t *testing.T, url string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pgtest.Pool(t, url), func(tx pgx.Tx) error {
		// The transaction ends the other sessions after it has locked and changed the tables. A session that is opened
		// afterwards has to wait for the locks, so it cannot see the old rows.
		_, err := tx.Exec(t.Context(), `LOCK chat.projections; TRUNCATE chat.counts;
UPDATE chat.projections SET position = 0; SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol)
		return err
	})
	require.NoError(t, err)
}

// A crash of PostgreSQL has undone rows of a projection. Queries must wait until the events are applied again, both on
// the instance that had applied the events and on another.
func TestWaitFor_FallsBackWhenTheServerHasLostRows(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	l, other := logtest.Running(t, url, counting), logtest.Running(t, url, counting)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Follow(ctx, l, &counts{}) }()
	for i := range 10 {
		logtest.Commit(t, l, logtest.Said(fmt.Sprint(i%3), fmt.Sprint(i)))
	}
	for _, each := range []*eventlog.Log{l, other} {
		require.NoError(t, WaitFor(t.Context(), each, "counts", 10))
	}
	loseApplied(t, url)
	// The instance that applies the projection must continue at the position that the database contains, and not at the
	// position that the instance remembers.
	meshtest.Eventually(t, "all is applied again", func() bool {
		var n int64
		err := pgtest.Pool(t, url).QueryRow(t.Context(), "SELECT coalesce(sum(applied), 0) FROM chat.counts").Scan(&n)
		return err == nil && n == 10
	})
	for _, each := range []*eventlog.Log{l, other} {
		meshtest.Eventually(t, "the instance knows that all is applied", func() bool {
			return WaitFor(t.Context(), each, "counts", 10) == nil
		})
	}
	cancel()
	require.NoError(t, <-ended)
	loseApplied(t, url)
	for name, each := range map[string]*eventlog.Log{"that applied": l, "that did not apply": other} {
		meshtest.Eventually(t, "the instance "+name+" notices that its connections are lost", func() bool {
			position, _ := each.Applied().Of("counts").Now()
			return position == 0
		})
		meshtest.Eventually(t, "a query waits", func() bool {
			impatient, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer stop()
			err := WaitFor(impatient, each, "counts", 10)
			require.Error(t, err, "nothing is applied at the moment")
			return impatient.Err() != nil
		})
	}
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, other, &counts{}) })
	meshtest.Eventually(t, "another instance applies the projection", func() bool {
		return WaitFor(t.Context(), l, "counts", 10) == nil
	})
	checkCounts(t, l, 10)
}

// PostgreSQL has crashed, and an instance has not noticed it: in memory, the instance still has the projection's
// position from before the crash. A query of the instance then reads rows in a session that was opened after the crash.
// ReadConsistently must notice the crash, wait until the projection has reached the position again, and repeat the
// read.
func TestReading_FallsBackWhenTheServerHasLostRows(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before the query", "between the wait and the read"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			writes := logtest.Running(t, url, counting)
			for i := range 10 {
				logtest.Commit(t, writes, logtest.Said(fmt.Sprint(i%3), fmt.Sprint(i)))
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- Follow(ctx, writes, &counts{}) }()
			l := logtest.Instance(t, url, counting) // does not run, so it does not notice that sessions end
			query := func(between func()) (applied int64, err error) {
				return applied, ReadConsistently(t.Context(), l, func() error {
					if err := WaitFor(t.Context(), l, "counts", 10); err != nil {
						return err
					}
					between()
					return l.Options().Pool.QueryRow(t.Context(), "SELECT coalesce(sum(applied), 0) FROM chat.counts").Scan(&applied)
				})
			}
			applied, err := query(func() {})
			require.NoError(t, err)
			require.EqualValues(t, 10, applied)
			cancel()
			require.NoError(t, <-ended)

			crash := sync.OnceFunc(func() {
				loseApplied(t, url)
				l.Options().Pool.Reset()
			})
			if when == "before the query" {
				crash()
				require.NoError(t, l.Options().Pool.Ping(t.Context())) // opens a new session, as another query would
			}
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				applied, err = query(crash)
			}()
			meshtest.Eventually(t, "the query waits or has returned", func() bool {
				select {
				case <-answered:
					return true
				default:
					return len(l.Applied().Of("counts").Demand()) > 0
				}
			})
			pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, writes, &counts{}) })
			<-answered
			require.NoError(t, err)
			require.EqualValues(t, 10, applied)
		})
	}
}

// PostgreSQL crashes repeatedly, while some rows of a projection are not on disk yet. The events of these rows must be
// applied again.
func TestFollow_SurvivesCrashesOfTheServer(t *testing.T) {
	t.Parallel()
	url := pgtest.OwnServer(t)
	l := logtest.Running(t, url, counting)
	_, err := l.Options().Pool.Exec(t.Context(), "ALTER SYSTEM SET wal_writer_delay = '10s'")
	require.NoError(t, err)
	_, err = l.Options().Pool.Exec(t.Context(), "SELECT pg_reload_conf()")
	require.NoError(t, err)
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, l, &counts{}) })
	var events catalog.Position
	for round := range 3 {
		for i := range 20 {
			w := logtest.Said(fmt.Sprint(i%3), fmt.Sprint(round, "-", i))
			meshtest.Eventually(t, "the write is committed", func() bool {
				_, err := l.Commit(t.Context(), w)
				return err == nil
			})
			events++
		}
		meshtest.Eventually(t, "all is applied", func() bool {
			return WaitFor(t.Context(), l, "counts", events) == nil
		})
		var pid int
		require.NoError(t, l.Options().Pool.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid))
		process, err := os.FindProcess(pid)
		require.NoError(t, err)
		require.NoError(t, process.Kill()) // the server ends all sessions and recovers
		meshtest.Eventually(t, "all is applied again", func() bool {
			var applied, last catalog.Position
			err := l.Options().Pool.QueryRow(t.Context(), "SELECT coalesce(sum(applied), 0), coalesce(sum(last), 0) FROM chat.counts").
				Scan(&applied, &last)
			return err == nil && applied == events && last == events
		})
	}
}

// One instance applies a projection, and the standby loses its session. Once the standby can reach the database again,
// it must report that it no longer waits, although it does not get the lease.
func TestWaiting_StandingByIsHealthy(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	leads := logtest.Running(t, url, counting)
	following(t, leads, &counts{})
	var away, back atomic.Int64
	standby := logtest.Instance(t, pgtest.Named(t, url, "standby"), counting, func(o *eventlog.Options) {
		o.Waiting = func(_ string, err error) {
			if err != nil {
				away.Add(1)
			} else {
				back.Add(1)
			}
		}
	})
	pgtest.During(t, func(ctx context.Context) error { return Follow(ctx, standby, &counts{}) })
	meshtest.Eventually(t, "its sessions are ended", func() bool {
		_, err := leads.Options().Pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'standby' AND datname = current_database() AND query LIKE '%pg_try_advisory_lock%'`)
		return err == nil && away.Load() > 0
	})
	meshtest.Eventually(t, "the instance reports that it continues", func() bool { return back.Load() == away.Load() })
}

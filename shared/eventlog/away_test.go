package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/retry"
)

// An instance freezes while it holds the log's lock, and its transaction stays open. PostgreSQL must end the session of
// that instance, so that other instances can commit.
func TestCommit_ContinuesWhenTheLockHolderFreezes(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, frozen := running(t, url), instance(t, url)
	commit(t, l, said("1", "before"))
	tx := &transaction{log: frozen}
	var err error
	if tx.conn, err = frozen.connectToCommit(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer tx.conn.Close(context.Background())
	if err := tx.send(t.Context(), tx.guard()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	commit(t, l, said("1", "after"))
	took := time.Since(begun)
	t.Logf("committed after %v", took)
	if took < time.Second || took > 3*time.Second {
		t.Errorf("committed after %v, want about 2 s", took)
	}
	if _, err := tx.conn.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("the frozen transaction could still commit")
	}
}

// An instance holds the log's lock during a statement that takes 20 s. PostgreSQL must end this transaction, so that
// other instances can commit.
func TestCommit_ContinuesWhenTheLockHolderIsSlow(t *testing.T) {
	t.Parallel()
	url := database(t)
	l, slow := running(t, url), instance(t, url)
	tx := &transaction{log: slow}
	var err error
	if tx.conn, err = slow.connectToCommit(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer tx.conn.Close(context.Background())
	b := tx.guard()
	b.Queue("SELECT pg_sleep(20)")
	ended := make(chan error, 1)
	go func() { ended <- tx.send(context.Background(), b) }()
	meshtest.Eventually(t, "the slow instance holds the lock", func() bool {
		var held bool
		err := l.o.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')").Scan(&held)
		return err == nil && held
	})
	begun := time.Now()
	commit(t, l, said("1", "after"))
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("committed after %v", took)
	}
	if err := <-ended; err == nil || pgerror.IsData(err) {
		t.Errorf("the slow transaction: %v", err)
	}
}

func TestCommit_RetriesAfterALostConnection(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	commit(t, l, said("before", "c1"))
	killer := pool(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var away, done atomic.Int64
	for w := range 8 {
		all.Go(func() {
			for i := range 100 {
				for tries := 0; ; tries++ {
					c, err := l.Commit(t.Context(), said(fmt.Sprint(w), fmt.Sprint(w, "-", i)))
					var repeated *RepeatedError
					if errors.As(err, &repeated) && tries > 0 {
						c.Outcomes = slices.Collect(maps.Values(repeated.Outcomes))
					} else if errors.Is(err, retry.ErrUnavailable) {
						away.Add(1)
						continue
					} else if err != nil {
						t.Error(err)
						return
					}
					if r := c.Outcomes[0]; r.Kind != envelope.Committed || r.Version != catalog.Version(i+1) {
						t.Errorf("%+v", r)
					}
					done.Add(1)
					break
				}
			}
		})
	}
	all.Go(func() {
		for done.Load() < 800 && ctx.Err() == nil {
			_, _ = killer.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			retry.Sleep(ctx, 20*time.Millisecond)
		}
	})
	all.Wait()
	t.Logf("the database was unavailable %d times", away.Load())
	if away.Load() == 0 {
		t.Error("the database was never unavailable")
	}
	meshtest.Eventually(t, "each event is written once", func() bool {
		head, err := l.Head(t.Context())
		return head == 801 && err == nil
	})
}

// cutting is a connection that breaks once its field cut is true: the server has received the request, but the response
// is lost.
type cutting struct {
	net.Conn
	cut *atomic.Bool
}

func (c cutting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut.CompareAndSwap(true, false) {
		_ = c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// The connection is lost while the server commits, so that the instance does not receive the result. When the instance
// commits the same writes again, the errors must show that the writes were committed the first time.
func TestCommit_AnUnknownCommitIsResolvedByIDs(t *testing.T) {
	t.Parallel()
	url := database(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	var cut atomic.Bool
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return cutting{c, &cut}, err
	}
	lossy, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lossy.Close)
	var armed atomic.Bool
	l := instance(t, url, func(o *Options) { o.Pool = lossy })
	l.checked = func() { // is called just before the last round trip of a transaction
		if armed.CompareAndSwap(true, false) {
			cut.Store(true)
		}
	}
	// All connections share the variable cut. Of the log's goroutines, only commitAll runs, so that the connection for
	// commits is the one that breaks.
	during(t, func(ctx context.Context) error { l.commitAll(ctx); return nil })
	if _, err := l.Inbox().BeginConsumer(t.Context(), inbox.Consumer{Source: "feed", Topic: "feed-events", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	advance := func(partition int32) *inbox.Advance {
		of := inbox.SourcePartition{Source: "feed", Topic: "feed-events", Partition: partition}
		if _, err := l.Inbox().BeginPartition(t.Context(), of, inbox.Checkpoint{}); err != nil {
			t.Fatal(err)
		}
		return &inbox.Advance{Of: of, To: inbox.Checkpoint{Position: 1}}
	}
	command := said("1", "c")
	reaction := Write{Expected: AnyVersion, Advance: advance(2), Appends: []Append{{Stream: "conversation:2",
		Expected: AnyVersion, Events: []proto.Message{sent("2", "m", "x")}}}}
	for i, w := range []Write{command, reaction} {
		// These commits prepare the statements of the connection, so that the next commit needs no further round trips.
		commit(t, l, said("before", fmt.Sprint("before", i)))
		commit(t, l, Write{Expected: AnyVersion, Advance: advance(int32(i))})
		armed.Store(true)
		if _, err := l.Commit(t.Context(), w); !errors.Is(err, retry.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
	meshtest.Eventually(t, "both are committed", func() bool {
		head, err := l.Head(t.Context())
		return err == nil && head == 4
	})
	_, err = l.Commit(t.Context(), command)
	r := failsAs[*RepeatedError](t, err).Outcomes[0]
	if r.Kind != envelope.Committed || r.Version != 1 || r.Position != 2 {
		t.Errorf("%+v", r)
	}
	_, err = l.Commit(t.Context(), reaction)
	if e := failsAs[*inbox.StaleCheckpointError](t, err); e.Have.Position != 1 {
		t.Errorf("%+v", e)
	}
	if head, err := l.Head(t.Context()); head != 4 || err != nil {
		t.Errorf("head %d %v", head, err)
	}
}

func TestRun_FailsCommitsAfterItsEnd(t *testing.T) {
	t.Parallel()
	l := instance(t, database(t))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	commit(t, l, said("1", "c1"))
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, err := l.Commit(t.Context(), said("1", "c2")); !errors.Is(err, retry.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

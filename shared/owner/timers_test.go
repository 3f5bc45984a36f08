//go:build integration

package owner

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func (y *toy) timers() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		(&timers{log: y.log, catalog: y.catalog, decider: y.d, logger: slog.New(slog.DiscardHandler),
			waiting: func(string, error) {}}).run(ctx)
		close(ended)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	y.t.Cleanup(stop)
	return stop
}

func TestTimer_FiresOnceWhenItIsDueAndNotWhenItIsCancelled(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	var mu sync.Mutex
	fired := map[string]int{}
	onRing := func(id string, _ time.Time) { mu.Lock(); fired[id]++; mu.Unlock() }
	one, two := newToy(t, url, onRing), newToy(t, url, onRing)
	stop := one.timers()
	two.timers()
	one.do("ann", &toyv1.Ring{BellId: "cancelled", Milliseconds: 5000}) // late enough that Answer cancels it first
	one.do("ann", &toyv1.Ring{BellId: "later", Milliseconds: 5000})
	one.do("ann", &toyv1.Ring{BellId: "later", Milliseconds: 3_600_000})
	one.do("ann", &toyv1.Answer{BellId: "cancelled"})
	one.do("ann", &toyv1.Ring{BellId: "due", Milliseconds: 5000}) // due after the timers of 5 s above
	stop()                                                        // the other instance must fire the timer
	require.Eventually(t, func() bool { return len(one.events("bell:due")) == 2 }, time.Minute, 10*time.Millisecond)
	e := one.events("bell:due")
	require.Equal(t, "toy.bell_silenced", e[1].Type)
	require.Equal(t, catalog.TimerActor, e[1].Actor)
	rang := &toyv1.BellRang{}
	require.NoError(t, proto.Unmarshal(e[0].Body, rang))
	require.False(t, e[1].Time.Before(rang.Until.AsTime()), "too early")
	require.Len(t, one.events("bell:cancelled"), 2)
	require.Len(t, one.events("bell:later"), 2)
	mu.Lock()
	require.Zero(t, fired["cancelled"]+fired["later"])
	mu.Unlock()
	require.Equal(t, 1, one.count(`SELECT count(*) FROM toy.timers`), "a timer that is not due yet is kept")
}

// Timers are canceled at about the time at which they are due. For each timer, either the cancellation or the firing
// must be committed, but not both.
func TestTimer_CancelAgainstFire(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	one, two := newToy(t, url, nil), newToy(t, url, nil)
	one.timers()
	const n = 60
	for i := range n {
		one.do("ann", &toyv1.Ring{BellId: fmt.Sprint(i), Milliseconds: 150})
	}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { two.do("ann", &toyv1.Answer{BellId: fmt.Sprint(i)}) })
	}
	all.Wait()
	require.Eventually(t, func() bool { return one.count(`SELECT count(*) FROM toy.timers`) == 0 }, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, 2*n, one.count(`SELECT count(*) FROM toy.events`))
}

// 10,000 timers are due at once. Commands of users must not have to wait until all timers have fired.
func TestTimer_ManyDueAtOnceDoNotHoldUpCommands(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	const n = 10_000
	_, err := y.pool.Exec(t.Context(), `INSERT INTO toy.timers (stream, key, generation, due, command, body, command_id)
SELECT 'bell:' || i, 'ring', 1, now() - interval '1 minute', 'toy.silence', convert_to(E'\n' || chr(length(i::text)) || i, 'UTF8'), 'id' || i
FROM generate_series(1, $1::int) i`, n)
	require.NoError(t, err)
	y.timers()
	var others int
	require.Eventually(t, func() bool {
		y.do("ann", &toyv1.WriteNote{UserId: fmt.Sprint("u", others%50), Text: "x"})
		others++
		return y.count(`SELECT count(*) FROM toy.timers`) == 0
	}, 2*time.Minute, time.Millisecond)
	require.Greater(t, others, 20, "a command waits for a batch of timers, not for all of them")
	require.Equal(t, n, y.count(`SELECT count(*) FROM toy.outcomes WHERE actor = '$timer'`))
	t.Logf("%d commands of others meanwhile", others)
}

// rebuild calls the procedure Rebuild of the operator service, and returns the result of each rebuild.
func (y *toy) rebuild(name string) []*meshv1.Rebuilt {
	y.t.Helper()
	server := httptest.NewServer(second(meshv1connect.NewOperatorServiceHandler(&operator{name: "toy", log: y.log,
		work: context.Background()})))
	defer server.Close()
	steps, err := meshv1connect.NewOperatorServiceClient(server.Client(), server.URL).Rebuild(y.t.Context(),
		connect.NewRequest(&meshv1.RebuildRequest{Projection: name}))
	require.NoError(y.t, err)
	defer steps.Close()
	var all []*meshv1.Rebuilt
	for steps.Receive() {
		if r := steps.Msg().GetRebuilt(); r != nil {
			all = append(all, r)
		}
	}
	require.NoError(y.t, steps.Err())
	return all
}

func second[A, B any](_ A, b B) B { return b }

// The timers are rebuilt from the log. The rebuilt timers must be the same as the live ones, and a row that was changed
// by hand must be reported and repaired. A timer that has fired must not fire again.
func TestTimer_ARebuildIsExactAndSendsNothingTwice(t *testing.T) {
	t.Parallel()
	var fired atomic.Int64
	y := newToy(t, meshtest.Postgres(t), func(string, time.Time) { fired.Add(1) })
	stop := y.timers()
	for i := range 30 {
		y.do("ann", &toyv1.Ring{BellId: fmt.Sprint("past", i), Milliseconds: 0})
		y.do("ann", &toyv1.Ring{BellId: fmt.Sprint("later", i), Milliseconds: 3_600_000})
		y.do("ann", &toyv1.Ring{BellId: fmt.Sprint("answered", i), Milliseconds: 3_600_000})
		y.do("ann", &toyv1.Answer{BellId: fmt.Sprint("answered", i)})
	}
	require.Eventually(t, func() bool { return fired.Load() == 30 && y.count(`SELECT count(*) FROM toy.timers`) == 30 },
		time.Minute, 10*time.Millisecond)
	content := func() int {
		return y.count(`SELECT hashtext(string_agg(t::text, ',' ORDER BY stream)) FROM toy.timers t`)
	}
	before := content()
	for _, name := range []string{"", "timers"} {
		rebuilt := y.rebuild(name)
		require.Len(t, rebuilt, 1)
		require.EqualValues(t, 30, rebuilt[0].Tables[0].OldRows)
		require.EqualValues(t, 30, rebuilt[0].Tables[0].NewRows)
		require.Zero(t, rebuilt[0].Tables[0].Differ)
		require.Empty(t, rebuilt[0].Left)
	}
	_, err := y.pool.Exec(t.Context(), `UPDATE toy.timers SET generation = 99 WHERE stream = 'bell:later1';
DELETE FROM toy.timers WHERE stream = 'bell:later2'`)
	require.NoError(t, err)
	rebuilt := y.rebuild("timers")[0]
	require.EqualValues(t, 2, rebuilt.Tables[0].Differ)
	require.Contains(t, rebuilt.Tables[0].Rows[0].Old, `"generation": 99`)
	require.Equal(t, before, content())
	y.do("ann", &toyv1.Ring{BellId: "after", Milliseconds: 0})
	require.Eventually(t, func() bool { return y.count(`SELECT count(*) FROM toy.timers`) == 30 }, time.Minute, 10*time.Millisecond)
	stop()
	require.EqualValues(t, 31, fired.Load())
	require.Equal(t, 31, y.count(`SELECT count(*) FROM toy.outcomes WHERE actor = '$timer'`))
	// The indexes must have their usual names, because later migrations may refer to them.
	require.Equal(t, 2, y.count(`SELECT count(*) FROM pg_indexes WHERE schemaname = 'toy' AND indexname IN ('timers_pkey', 'timers_by_due')`))
}

// Timers are set and canceled while the timers are rebuilt. The rebuilt table must contain exactly the timers that
// were set and not canceled.
func TestTimer_ARebuildUnderTrafficLosesNone(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	y.timers()
	stop := make(chan struct{})
	var writing sync.WaitGroup
	var rung atomic.Int64
	for w := range 4 {
		writing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprint(w, "-", i)
				y.do("ann", &toyv1.Ring{BellId: id, Milliseconds: 3_600_000})
				if i%2 == 0 {
					y.do("ann", &toyv1.Answer{BellId: id})
				}
				rung.Add(1)
			}
		})
	}
	for n := range 3 {
		require.Eventually(t, func() bool { return rung.Load() >= int64(n+1)*50 }, time.Minute, time.Millisecond)
		require.Zero(t, y.rebuild("timers")[0].Tables[0].Differ)
	}
	close(stop)
	writing.Wait()
	require.Equal(t, y.count(`SELECT count(*) FROM toy.events WHERE type = 'toy.bell_rang'`)-
		y.count(`SELECT count(*) FROM toy.events WHERE type = 'toy.bell_answered'`), y.count(`SELECT count(*) FROM toy.timers`))
}

// Three instances fire timers, and the clocks of two of them are wrong by five seconds. No timer may fire before it is
// due by the log's clock, and each timer must fire once.
func TestTimer_WrongClocksOfInstancesDoNotMatter(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	var all []*toy
	for _, off := range []time.Duration{5 * time.Second, -5 * time.Second, 0} {
		y := newToyAt(t, url, nil, func() time.Time { return time.Now().Add(off) })
		y.timers()
		all = append(all, y)
	}
	const n = 30
	for i := range n {
		all[i%3].do("ann", &toyv1.Ring{BellId: fmt.Sprint(i), Milliseconds: int64(500 + 50*i)})
	}
	require.Eventually(t, func() bool { return all[0].count(`SELECT count(*) FROM toy.timers`) == 0 }, time.Minute, 10*time.Millisecond)
	for i := range n {
		events := all[2].events(fmt.Sprint("bell:", i))
		require.Len(t, events, 2, "bell %d", i)
		rang := &toyv1.BellRang{}
		require.NoError(t, proto.Unmarshal(events[0].Body, rang))
		require.WithinRange(t, rang.Until.AsTime(), events[0].Time.Add(-time.Minute), events[1].Time, "bell %d is too early", i)
		require.False(t, rang.Until.AsTime().Before(events[0].Time.Add(-time.Second)), "the time is that of another clock")
	}
	require.Equal(t, n, all[0].count(`SELECT count(*) FROM toy.outcomes WHERE actor = '$timer'`))
}

// An instance loses all its connections while it sends the commands of timers. Another instance starts and fires the
// timers, and then the first instance continues. Each timer must fire once.
func TestTimer_AnInstanceIsKilledWhileItFires(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	firing, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	victim := newToy(t, url, func(string, time.Time) { once.Do(func() { close(firing); <-release }) })
	const n = 40
	for i := range n {
		victim.do("ann", &toyv1.Ring{BellId: fmt.Sprint(i), Milliseconds: 0})
	}
	stop := victim.timers()
	<-firing
	other, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer other.Close(context.Background())
	_, err = other.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	require.NoError(t, err)
	heir := newToy(t, url, nil)
	heir.timers()
	require.Eventually(t, func() bool { return heir.count(`SELECT count(*) FROM toy.timers`) == 0 }, time.Minute, 10*time.Millisecond)
	close(release)
	stop()
	require.Equal(t, 2*n, heir.count(`SELECT count(*) FROM toy.events`))
	require.Equal(t, n, heir.count(`SELECT count(*) FROM toy.outcomes WHERE actor = '$timer'`))
}

// More than timersAtOnce streams have a timer that is due again each time it has fired. These timers have been due for
// longer than some other timers. The other timers must still fire.
func TestTimer_EndlessTimersDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	var asking sync.WaitGroup
	for i := range timersAtOnce + 100 {
		asking.Go(func() { y.do("ann", &toyv1.Ring{BellId: fmt.Sprint("endless", i), Milliseconds: -3_600_000}) })
	}
	asking.Wait()
	y.timers()
	for i := range 20 {
		y.do("ann", &toyv1.Ring{BellId: fmt.Sprint(i), Milliseconds: 0})
	}
	require.Eventually(t, func() bool {
		return y.count(`SELECT count(*) FROM toy.events WHERE type = 'toy.bell_silenced'`) == 20
	}, 30*time.Second, 10*time.Millisecond)
	require.Greater(t, y.count(`SELECT count(*) FROM toy.timers`), timersAtOnce, "the endless timers still exist")
}

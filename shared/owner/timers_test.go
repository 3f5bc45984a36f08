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
	says := func(id string, _ time.Time) { mu.Lock(); fired[id]++; mu.Unlock() }
	one, two := newToy(t, url, says), newToy(t, url, says)
	stop := one.timers()
	two.timers()
	one.do("ann", &toyv1.Ring{BellId: "cancelled", Milliseconds: 300})
	one.do("ann", &toyv1.Ring{BellId: "later", Milliseconds: 200})
	one.do("ann", &toyv1.Ring{BellId: "later", Milliseconds: 3_600_000})
	one.do("ann", &toyv1.Answer{BellId: "cancelled"})
	one.do("ann", &toyv1.Ring{BellId: "due", Milliseconds: 400})
	stop() // the other instance goes on
	require.Eventually(t, func() bool { return len(one.events("bell:due")) == 2 }, 20*time.Second, 10*time.Millisecond)
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
	require.Equal(t, 1, one.count(`SELECT count(*) FROM toy.timers`), "what is set for later stays")
}

// Cancelling and firing race: one of them is committed, never both.
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

// Thousands of timers that are due at once hold up nobody else's command.
func TestTimer_ManyDueAtOnceStarveNobody(t *testing.T) {
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

// rebuild has the service make something anew, as the operator's command does.
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

// Timers that an operator has made anew of the log equal those that are there, what differs is shown, and what was sent
// is not sent again.
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
	// The indexes keep their names, for later migrations.
	require.Equal(t, 2, y.count(`SELECT count(*) FROM pg_indexes WHERE schemaname = 'toy' AND indexname IN ('timers_pkey', 'timers_by_due')`))
}

// Timers that are set and cancelled while they are made anew are in the new table.
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

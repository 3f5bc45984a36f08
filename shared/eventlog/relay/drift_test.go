package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/advisory"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
)

// acknowledging is a publisher that discards all messages and reports them as published.
type acknowledging struct{}

func (acknowledging) Publish(string, ...*message.Message) error { return nil }

// leader returns a relay that holds the lease of a log. The relay publishes one event in each step, and saves its state
// after each step.
func leader(t testing.TB, l *eventlog.Log) *leading {
	t.Helper()
	r := New(l, Options{Publisher: acknowledging{}, PositionEvery: time.Hour, SignOfLife: time.Hour})
	r.saveEvery, r.batch = 0, 1
	// The relay must not lose its lease on a busy machine.
	lease, ctx, err := l.TakeLease(t.Context(), "relay", advisory.LeaseOptions{Silence: time.Hour, Every: leasePollInterval})
	require.NoError(t, err)
	x := &leading{Relay: r, lease: lease, sequence: &sequence{}}
	require.NoError(t, x.restore(ctx))
	stop, err := x.countTopics(ctx)
	require.NoError(t, err)
	t.Cleanup(func() {
		stop()
		lease.Release(context.Background())
	})
	return x
}

// saving is the cost of an update by which the relay saves its state.
type saving struct {
	buffers int64 // number of pages that the update read
	size    int64 // size of the table after the update, in bytes
}

func measureSaving(t testing.TB, p *pgxpool.Pool) (s saving) {
	t.Helper()
	tx, err := p.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	var encoded []byte
	err = tx.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) UPDATE chat.relay
SET position = position WHERE single`).Scan(&encoded)
	require.NoError(t, err)
	var plans []struct {
		Plan struct {
			Hit  int64 `json:"Shared Hit Blocks"`
			Read int64 `json:"Shared Read Blocks"`
		}
	}
	require.NoError(t, json.Unmarshal(encoded, &plans))
	s.buffers = plans[0].Plan.Hit + plans[0].Plan.Read
	require.NoError(t, tx.QueryRow(t.Context(), "SELECT pg_relation_size('chat.relay')").Scan(&s.size))
	return s
}

// A leader relays 100,000 batches while another instance stands by. After each batch, an update saves the relay's state
// and leaves an old row version behind. No session may prevent PostgreSQL from removing these versions: otherwise
// updates would have to read more and more pages. The median of the pages that an update reads in the last tenth of the
// batches must be at most twice the median of the first tenth, plus 16. The margin is needed because a few pages depend
// on the moment at which PostgreSQL removes versions. The test counts pages because their number hardly depends on the
// machine. BenchmarkRelayDrift measures the time of a batch, which depends on the load of the machine.
func TestRelay_SaveCostStaysConstantBesideStandbys(t *testing.T) {
	t.Parallel()
	batches := 100_000
	if testing.Short() {
		batches = 10_000
	}
	const samples = 100
	url := pgtest.OwnServer(t)
	l := instance(t, url)
	require.NoError(t, l.FillForTest(t.Context(), eventlog.Fill{Events: int64(batches), Streams: 100}))
	// An autovacuum of these large tables would keep a snapshot for a long time.
	_, err := l.Options().Pool.Exec(t.Context(), `ALTER TABLE chat.events SET (autovacuum_enabled = off);
ALTER TABLE chat.event_rooms SET (autovacuum_enabled = off)`)
	require.NoError(t, err)
	x := leader(t, l)
	standby := running(t, pgtest.Named(t, url, "standby"))
	relaying(t, standby, acknowledging{})

	other := pool(t, url)
	var savings []saving
	var now, oldest []int64
	for batch := range batches {
		require.NoError(t, x.step(t.Context()))
		if (batch+1)%(batches/samples) == 0 {
			savings = append(savings, measureSaving(t, other))
			now, oldest = append(now, pgtest.TransactionID(t, other)), append(oldest, pgtest.Horizon(t, other, "standby"))
		}
	}
	require.Equal(t, catalog.Position(batches), x.sequence.Position)

	usual := func(of []saving) int64 { // the median of the pages that an update reads
		slices.SortFunc(of, func(a, b saving) int { return cmp.Compare(a.buffers, b.buffers) })
		return of[len(of)/2].buffers
	}
	size := savings[samples-1].size
	first, last := usual(savings[:samples/10]), usual(savings[samples*9/10:])
	t.Logf("an update reads %d pages in the first tenth of %d batches, and %d in the last; the table has %d bytes", first,
		batches, last, size)
	assert.LessOrEqual(t, last, 2*first+16, "pages that an update reads")
	// If all row versions were kept, the table would have more than 100 bytes for each batch.
	assert.Less(t, size, int64(10*batches), "bytes of the table")
	for i, xmin := range oldest[samples/10:] {
		// xmin is the standby's horizon at sample i+samples/10, because the loop skips the first tenth of the samples.
		// now[i] is the transaction id at sample i, a tenth of the batches earlier.
		if xmin != 0 {
			assert.Greater(t, xmin, now[i], "the standby keeps a snapshot for a tenth of the batches")
		}
	}
	assert.Greater(t, now[samples-1]-now[0], int64(batches/2), "each batch is a transaction of its own")
}

// BenchmarkRelayDrift compares how long a batch takes in the last tenth of many batches and in the first. Run it with
// -benchtime 100000x.
func BenchmarkRelayDrift(b *testing.B) {
	url := pgtest.OwnServer(b)
	l := instance(b, url)
	require.NoError(b, l.FillForTest(b.Context(), eventlog.Fill{Events: int64(b.N), Streams: 100}))
	x := leader(b, l)
	standby := running(b, url)
	relaying(b, standby, acknowledging{})
	var last time.Time
	var tenths [10]time.Duration
	b.ResetTimer()
	for i := range b.N {
		last = time.Now()
		if err := x.step(b.Context()); err != nil {
			b.Fatal(err)
		}
		tenths[i*10/b.N] += time.Since(last)
	}
	b.StopTimer()
	b.ReportMetric(float64(tenths[9])/float64(tenths[0]), "last/first-tenth")
}

//go:build integration

package meshtest_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// ownServer is a server that belongs to one test, with functions that store a number on the server and read it back.
type ownServer struct {
	own interface {
		Start()
		Stop()
		Kill()
		Freeze()
		Thaw()
		PID() int
		Addr() string
	}
	write func(ctx context.Context, n int) error
	read  func(ctx context.Context) (n int, err error)
}

// TestOwnServers_ComeBackWithTheirData stops and kills each kind of server and starts it again, and freezes it, as
// fault tests do. Afterwards the server must still have its data and its address.
func TestOwnServers_ComeBackWithTheirData(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) ownServer{
		"kafka": ownKafka, "redis": ownRedis, "postgres": ownPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			// A broker can answer before it leads its partitions, so reads and writes are tried repeatedly.
			holds := func(n int) {
				t.Helper()
				require.Eventually(t, func() bool {
					got, err := s.read(brief(t, 20*time.Second))
					return err == nil && got == n
				}, 20*time.Second, 50*time.Millisecond)
			}
			write := func(n int) {
				t.Helper()
				require.Eventually(t, func() bool { return s.write(brief(t, 20*time.Second), n) == nil },
					20*time.Second, 50*time.Millisecond)
			}
			address, first := s.own.Addr(), s.own.PID()
			write(1)
			for n, end := range []func(){s.own.Stop, s.own.Kill} {
				end()
				_, err := net.Dial("tcp4", address)
				require.ErrorContains(t, err, "refused")
				s.own.Start()
				require.Equal(t, address, s.own.Addr())
				require.NotEqual(t, first, s.own.PID())
				holds(n + 1)
				write(n + 2)
			}

			s.own.Freeze()
			require.Error(t, s.write(brief(t, time.Second), 4))
			s.own.Thaw()
			require.Eventually(t, func() bool {
				n, err := s.read(brief(t, 20*time.Second))
				return err == nil && n >= 3 // 4 if the server has executed the write that got no answer
			}, 20*time.Second, 50*time.Millisecond)

			s.own.Freeze() // the cleanup of the test must be able to stop a frozen server
		})
	}
}

func ownKafka(t *testing.T) ownServer {
	own := meshtest.NewKafkaServer(t)
	k := own.Settings()
	createTopic(t, k, "numbers")
	// Each write and each read gets a new client, so that it does not depend on the state of an earlier client.
	client := func(more ...kgo.Opt) (*kgo.Client, error) {
		return kgo.NewClient(append(append(k.Options(), kgo.RecordRetries(0), kgo.RequestRetries(0)), more...)...)
	}
	return ownServer{own,
		func(ctx context.Context, n int) error {
			producer, err := client()
			if err != nil {
				return err
			}
			defer producer.Close()
			done := make(chan error, 1)
			producer.Produce(ctx, &kgo.Record{Topic: "numbers", Value: []byte(fmt.Sprint(n))},
				func(_ *kgo.Record, err error) { done <- err })
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		func(ctx context.Context) (n int, err error) {
			consumer, err := client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
				"numbers": {0: kgo.NewOffset().AtStart()}}))
			if err != nil {
				return 0, err
			}
			defer consumer.Close()
			for {
				fetches := consumer.PollFetches(ctx)
				if ctx.Err() != nil {
					return 0, ctx.Err()
				}
				last := false
				fetches.EachPartition(func(p kgo.FetchTopicPartition) {
					for _, r := range p.Records {
						if _, e := fmt.Sscan(string(r.Value), &n); e != nil {
							err = e
						}
						last = r.Offset == p.HighWatermark-1
					}
				})
				if last || err != nil {
					return n, err
				}
			}
		},
	}
}

func ownRedis(t *testing.T) ownServer {
	own := meshtest.NewRedisServer(t)
	return ownServer{own,
		func(ctx context.Context, n int) error {
			client, err := own.Settings().Open(ctx)
			if err != nil {
				return err
			}
			defer client.Close()
			return client.Set(ctx, "number", n, 0).Err()
		},
		func(ctx context.Context) (int, error) {
			client, err := own.Settings().Open(ctx)
			if err != nil {
				return 0, err
			}
			defer client.Close()
			return client.Get(ctx, "number").Int()
		},
	}
}

func TestRedisServer_RewindsToASnapshot(t *testing.T) {
	t.Parallel()
	own := meshtest.NewRedisServer(t)
	client, err := own.Settings().Open(t.Context())
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.Set(t.Context(), "number", 1, 0).Err())
	own.Snapshot()
	require.NoError(t, client.Set(t.Context(), "number", 2, 0).Err())
	own.Kill()
	own.Rewind()
	own.Start()
	n, err := client.Get(t.Context(), "number").Int()
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func ownPostgres(t *testing.T) ownServer {
	own := meshtest.NewPostgresServer(t)
	in := func(ctx context.Context, use func(*pgx.Conn) error) error {
		conn, err := pgx.Connect(ctx, own.URL())
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		return use(conn)
	}
	require.NoError(t, in(t.Context(), func(c *pgx.Conn) error {
		_, err := c.Exec(t.Context(), "CREATE TABLE numbers (n int)")
		return err
	}))
	return ownServer{own,
		func(ctx context.Context, n int) error {
			return in(ctx, func(c *pgx.Conn) error {
				_, err := c.Exec(ctx, "INSERT INTO numbers VALUES ($1)", n)
				return err
			})
		},
		func(ctx context.Context) (n int, err error) {
			err = in(ctx, func(c *pgx.Conn) error {
				return c.QueryRow(ctx, "SELECT max(n) FROM numbers").Scan(&n)
			})
			return n, err
		},
	}
}

func TestJaeger_AnswersOnItsQueryAPI(t *testing.T) {
	t.Parallel()
	_, query := meshtest.Jaeger(t)
	response, err := http.Get(query + "/api/services")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
}

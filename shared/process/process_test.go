package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/process"
)

// role is the environment variable that makes this test binary run a service instead of the tests. Its value is the
// behavior of the service: "works", "hangs" or "fails".
const role = "PROCESS_TEST_ROLE"

func TestMain(m *testing.M) {
	all := process.Needs{Postgres: true, Redis: true, Kafka: true}
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "works":
		os.Exit(process.Main("chat", all, func(ctx context.Context, env process.Env) error {
			env.Ready()
			env.Ready()
			<-ctx.Done()
			if err := env.Stores.Postgres.Ping(context.WithoutCancel(ctx)); err != nil {
				return err // process.Main must not close the stores before the service has ended
			}
			return ctx.Err()
		}))
	case "hangs":
		os.Exit(process.Main("chat", process.Needs{}, func(_ context.Context, env process.Env) error {
			env.Ready()
			select {}
		}))
	case "fails":
		os.Exit(process.Main("chat", process.Needs{}, func(context.Context, process.Env) error {
			return errors.Join(errors.New("first"), errors.New("second"))
		}))
	}
}

// service is a process that runs one of the services of TestMain. Its environment contains only the variables that
// startService and the test set.
type service struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	said  []string
}

func startService(t *testing.T, what string, env ...string) *service {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append([]string{role + "=" + what, "JWT_SECRET=hidden, and long enough to be a secret"}, env...)
	out, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // in most tests the process has already ended
	return &service{cmd: cmd, lines: bufio.NewScanner(out)}
}

// until reads the output of the process up to a line that contains the given text.
func (s *service) until(t *testing.T, text string) {
	t.Helper()
	for s.lines.Scan() {
		s.said = append(s.said, s.lines.Text())
		if strings.Contains(s.lines.Text(), text) {
			return
		}
	}
	t.Fatalf("no line contains %q: %q", text, s.said)
}

func (s *service) signal(t *testing.T, what os.Signal) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(what))
}

// end waits until the process has ended, and returns its exit status and its whole output.
func (s *service) end(t *testing.T) (int, []string) {
	t.Helper()
	for s.lines.Scan() {
		s.said = append(s.said, s.lines.Text())
	}
	_ = s.cmd.Wait() // the exit status is in ProcessState
	require.NotContains(t, strings.Join(s.said, "\n"), "hidden")
	return s.cmd.ProcessState.ExitCode(), s.said
}

func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().(*net.TCPAddr).Port
}

func TestMain_OpensStoresInOrderAndEndsAtASignal(t *testing.T) {
	t.Parallel()
	postgres, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Dir: t.TempDir(),
		Settings: map[string]string{"fsync": "off"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, postgres.Stop()) })
	redis, err := embedded.StartRedis(embedded.RedisOptions{Password: "secret"})
	require.NoError(t, err)
	t.Cleanup(redis.Stop)
	kafka, err := embedded.StartKafka(embedded.KafkaOptions{})
	require.NoError(t, err)
	t.Cleanup(kafka.Stop)
	closed := closedPort(t)

	// At first no store is available. In each round, one more store is available, and the start must end with an error
	// about the next store.
	env := []string{
		fmt.Sprintf("DATABASE_URL=postgres://u:hidden@127.0.0.1:%d/db", closed),
		fmt.Sprintf("REDIS_URL=redis://:hidden@127.0.0.1:%d/0", closed),
		fmt.Sprintf("KAFKA_BROKERS=127.0.0.1:%d", closed),
	}
	right := []string{"DATABASE_URL=" + postgres.URL(), "REDIS_URL=" + redis.URL(),
		"KAFKA_BROKERS=" + kafka.Brokers()[0]}
	for i, store := range []string{"Postgres", "Redis", "Kafka"} {
		status, said := startService(t, "works", env...).end(t)
		require.Equal(t, 1, status)
		require.Len(t, said, 1)
		require.Contains(t, said[0], fmt.Sprintf("chat: %s at 127.0.0.1:%d", store, closed))
		env[i] = right[i]
	}

	s := startService(t, "works", append(env, "REDIS_HOST=another")...)
	s.until(t, "msg=ready")
	require.Contains(t, s.said[0], "REDIS_URL wins over REDIS_HOST")
	s.signal(t, syscall.SIGTERM)
	status, said := s.end(t)
	require.Equal(t, 0, status, said)
	require.Len(t, said, 4, "a notice, ready, stopping, stopped")
	require.Contains(t, said[3], "msg=stopped")
}

func TestMain_EndsAtOnceAtASecondSignal(t *testing.T) {
	t.Parallel()
	s := startService(t, "hangs")
	s.until(t, "msg=ready")
	s.signal(t, os.Interrupt)
	s.until(t, "msg=\"stopping")
	begun := time.Now()
	s.signal(t, os.Interrupt)
	status, _ := s.end(t)
	require.Equal(t, 1, status)
	require.Less(t, time.Since(begun), 5*time.Second)
}

func TestMain_PrintsOnOneLineWhyItEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ what, set, want string }{
		{"fails", "", "chat: first; second"},
		{"works", "PORT=http", `chat: PORT is "http": it has to be a number from 1 to 65535`},
		{"works", "KAFKA_ENABLED=false", "chat: KAFKA_ENABLED is false"},
		{"works", "JWT_SECRET=", "chat: JWT_SECRET is not set, nor is JWKS_URL"},
	} {
		status, said := startService(t, c.what, c.set).end(t)
		require.Equal(t, 1, status)
		require.Len(t, said, 1)
		require.True(t, strings.HasPrefix(said[0], c.want), said[0])
	}
}

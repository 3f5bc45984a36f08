package embedded_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

// role is the environment variable that makes this test binary run a store instead of the tests. The value of the
// variable is "postgres" or "kafka".
const role = "EMBEDDED_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(role) == "" {
		os.Exit(m.Run())
	}
	if err := serve(os.Getenv(role), os.Args[len(os.Args)-1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// serve runs a store and prints the store's address. It returns only if the start fails: the test kills the process.
func serve(store, dir string) error {
	switch store {
	case "postgres":
		p, err := embedded.StartPostgres(context.Background(), embedded.PostgresOptions{
			Dir: dir, User: "anna", Password: "it's a 'secret'/?", Database: "school", Settings: quick})
		if err != nil {
			return err
		}
		fmt.Println(p.URL(), p.PID())
	case "kafka":
		k, err := embedded.StartKafka(embedded.KafkaOptions{Dir: dir})
		if err != nil {
			return err
		}
		fmt.Println(strings.Join(k.Brokers(), ","))
	}
	select {}
}

type process struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func startProcess(t *testing.T, store, dir string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), role+"="+store)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{cmd, bufio.NewReader(out)}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // most tests have killed the process by then
	return p
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait() // returns an error, because the process was killed
}

package meshtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

// sharedServer returns the address of a server that tests share: the one that the environment names, or one that the
// first call in this process starts.
func sharedServer(t testing.TB, store, variable string) string {
	t.Helper()
	if named := server.Named(variable); named != "" {
		return named
	}
	address, err := held[store].get()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// held contains the servers of this process, one of each kind for all of the process's tests.
var held = map[string]*holder{
	"kafka":    {store: "kafka", variable: server.KafkaVariable},
	"postgres": {store: "postgres", variable: server.PostgresVariable},
}

// holder runs the program testservers, which keeps a server running for the life of this process.
type holder struct {
	store, variable string

	once    sync.Once
	input   io.Closer // never closed; it ends when this process ends, and then testservers stops the server
	address string
	err     error
}

func (h *holder) get() (string, error) {
	h.once.Do(func() { h.address, h.err = h.start() })
	return h.address, h.err
}

// start starts testservers with a pipe as its input. The pipe ends when this process ends, for whatever reason; then
// testservers stops the server and deletes its data.
func (h *holder) start() (address string, err error) {
	dir, err := server.ModuleDir()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "run", "./meshtest/cmd/testservers", "-hold", "-stores", h.store)
	cmd.Dir = dir
	if h.input, err = cmd.StdinPipe(); err != nil {
		return "", err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	// The error output goes to a file: testservers briefly outlives this process, and `go test` would wait until
	// testservers closes an error output that it inherited.
	log, err := os.CreateTemp("", "edumatrix-testservers-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, log.Close(), os.Remove(log.Name())) }()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start testservers: %w", err)
	}
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && name == h.variable {
			return value, nil
		}
	}
	problem := cmd.Wait()
	if problem == nil {
		problem = fmt.Errorf("testservers did not print %s", h.variable)
	}
	why, err := os.ReadFile(log.Name())
	return "", errors.Join(fmt.Errorf("start %s for the tests: %w\n%s", h.store, problem, why), err)
}

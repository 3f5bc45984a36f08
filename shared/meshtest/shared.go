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

// sharedServer is the address of a server that tests share: the one that the environment names, else one that this
// process starts when first asked.
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

// held are the servers of this process, one of each for all of its tests.
var held = map[string]*holder{
	"kafka":    {store: "kafka", variable: server.KafkaVariable},
	"postgres": {store: "postgres", variable: server.PostgresVariable},
}

// holder has the program testservers keep a server for as long as this process lives.
type holder struct {
	store, variable string

	once    sync.Once
	input   io.Closer // never closed by us: its end is the sign to stop the server
	address string
	err     error
}

func (h *holder) get() (string, error) {
	h.once.Do(func() { h.address, h.err = h.start() })
	return h.address, h.err
}

// start starts testservers. Its input is a pipe of ours, which ends when this process does, however it does: then the
// server is stopped and its data deleted.
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
	said, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	// A file, not our own output: it outlives us by a moment, for which `go test` would wait.
	log, err := os.CreateTemp("", "edumatrix-testservers-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, log.Close(), os.Remove(log.Name())) }()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start testservers: %w", err)
	}
	for lines := bufio.NewScanner(said); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && name == h.variable {
			return value, nil
		}
	}
	problem := cmd.Wait()
	why, err := os.ReadFile(log.Name())
	return "", errors.Join(fmt.Errorf("start %s for the tests: %w\n%s", h.store, problem, why), err)
}

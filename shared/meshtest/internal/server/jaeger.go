package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/edumatrix/interlinked/shared/filelock"
)

const (
	sharedModule  = "github.com/edumatrix/interlinked/shared"
	jaegerProgram = "github.com/jaegertracing/jaeger/cmd/all-in-one"
)

// ModuleDir returns the folder of this package's module, whatever the working directory is. (Tests run in the folders
// of their own packages.)
func ModuleDir() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", sharedModule).Output()
	if err != nil {
		return "", fmt.Errorf("find the module %s: %w", sharedModule, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// BuildJaeger returns the path of Jaeger's program. It builds the program, unless an earlier run or another process has
// done so. The build takes four minutes of processor time.
func BuildJaeger(ctx context.Context, log *slog.Logger) (string, error) {
	shared, err := ModuleDir()
	if err != nil {
		return "", err
	}
	module := filepath.Join(shared, "meshtest", "jaeger")
	sum, err := os.ReadFile(filepath.Join(module, "go.sum")) // pins the versions of Jaeger and its dependencies
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(sum)
	program := filepath.Join(cache, "jaeger-"+hex.EncodeToString(hash[:6]))
	lock, err := filelock.Await(ctx, program+".lock")
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	log.Info("building Jaeger, once: it takes minutes", "into", program)
	begun := time.Now()
	// The build has the same priority as the tests beside it. With a lower priority, the build would hardly progress
	// while other processes keep all processors busy, and the test that needs Jaeger would time out.
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", program+".new", jaegerProgram)
	cmd.Dir = module
	// Use the flags of the Makefile, so that the compiled standard library is reused.
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(context.Cause(ctx), fmt.Errorf("build Jaeger: %w:\n%s", err, tail(out)))
	}
	log.Info("built Jaeger", "took", time.Since(begun).Round(time.Second))
	return program, os.Rename(program+".new", program)
}

// Jaeger receives traces by OTLP, keeps them in memory and serves them.
type Jaeger struct {
	daemon
	otlp, query string
}

// StartJaeger starts a server that has no traces.
func StartJaeger(ctx context.Context, log *slog.Logger) (*Jaeger, error) {
	program, err := BuildJaeger(ctx, log)
	if err != nil {
		return nil, err
	}
	dir, err := NewDir("jaeger")
	if err != nil {
		return nil, err
	}
	j := &Jaeger{daemon: daemon{name: "Jaeger", dir: dir}}
	if err := j.start(ctx, program); err != nil {
		return nil, errors.Join(err, j.Remove())
	}
	return j, nil
}

// start starts the program with a free port for each of its listeners, because the default ports may be in use.
func (j *Jaeger) start(ctx context.Context, program string) error {
	var args []string
	for _, listener := range []string{"collector.otlp.grpc", "query.http-server", "collector.otlp.http",
		"query.grpc-server", "collector.grpc-server", "collector.http-server", "admin.http"} {
		port, err := FreePort()
		if err != nil {
			return err
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		args = append(args, "--"+listener+".host-port="+address)
		switch listener {
		case "collector.otlp.grpc":
			j.otlp = "http://" + address
		case "query.http-server":
			j.query = "http://" + address
		}
	}
	j.command = func() *exec.Cmd {
		cmd := exec.Command(program, args...)
		// Without this setting, Jaeger traces its own requests and sends these traces to port 4317. Nothing listens
		// there, so Jaeger would wait for half a minute when it stops.
		cmd.Env = append(os.Environ(), "OTEL_TRACES_SAMPLER=always_off")
		return cmd
	}
	j.answers = func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, j.query+"/api/services", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err = errors.Join(err, response.Body.Close()); err == nil && response.StatusCode != http.StatusOK {
			err = errors.New(response.Status)
		}
		return err
	}
	return j.Start(ctx)
}

// OTLP returns the address that receives trace spans by gRPC.
func (j *Jaeger) OTLP() string { return j.otlp }

// Query returns the address of the query API.
func (j *Jaeger) Query() string { return j.query }

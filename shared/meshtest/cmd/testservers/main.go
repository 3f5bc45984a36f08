// Testservers starts the real servers that integration tests share, runs a command that uses them, and stops them when
// the command ends:
//
//	testservers -- go test -tags integration ./...
//
// The command finds the servers by the variables MESHTEST_…. If KAFKA_BROKERS, REDIS_URL or DATABASE_URL names a
// server, testservers does not start one of that kind, but passes on the address of the named server.
//
// With -install, testservers first installs missing packages with apt-get, if it runs as root or with a sudo that needs
// no password. If there is neither a command nor -hold, testservers then exits.
//
// With -hold, testservers does not run a command: it prints the variables, and runs until its input ends or it is
// signaled. Package meshtest uses -hold for test processes that were not started by testservers.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

type options struct {
	stores  []string
	install bool
	jaeger  bool
	hold    bool
	command []string
}

func main() {
	var o options
	stores := flag.String("stores", strings.Join(server.All, ","), "the stores to start")
	flag.BoolVar(&o.install, "install", false, "install missing packages with the package manager, as root or with sudo")
	flag.BoolVar(&o.jaeger, "jaeger", false, "build Jaeger while the command runs, for the tests that need it")
	flag.BoolVar(&o.hold, "hold", false, "run no command, print the variables, stop at the end of the input")
	flag.Parse()
	o.stores, o.command = strings.Split(*stores, ","), flag.Args()
	status, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testservers:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

func run(o options) (status int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if !o.hold && !o.install && len(o.command) == 0 {
		return 2, errors.New("there is no command to run")
	}
	if o.install {
		if err := server.Install(ctx, o.stores, log); err != nil {
			return 1, err
		}
		if !o.hold && len(o.command) == 0 {
			return 0, nil
		}
	}
	servers, err := server.StartSet(ctx, o.stores, log)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, servers.Remove()) }()
	if o.hold {
		return 0, hold(ctx, servers)
	}
	if o.jaeger {
		stopBuild := buildJaeger(ctx, log)
		defer stopBuild()
	}
	fmt.Println("integration tests run against", servers)
	if status, err = command(ctx, o.command, servers.Environment()); status == 0 && err == nil {
		fmt.Println("passed: fast tests, and integration tests against", servers)
	}
	return status, err
}

// buildJaeger builds Jaeger in the background. A test that needs Jaeger waits for the build. If the build fails, the
// test builds again and gets the error.
func buildJaeger(ctx context.Context, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := server.BuildJaeger(ctx, log); err != nil && ctx.Err() == nil {
			log.Error("building Jaeger for the tests failed", "error", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// hold prints the variables, then an empty line, and waits for the end of the input or a signal.
func hold(ctx context.Context, servers *server.Set) error {
	out := bufio.NewWriter(os.Stdout)
	for _, variable := range servers.Variables() {
		_, _ = fmt.Fprintln(out, variable) // Flush returns the error
	}
	_, _ = fmt.Fprintln(out)
	if err := out.Flush(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin) // an error also means the end of the input
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return nil
}

// command runs the command and returns the command's exit status. When ctx ends, because this process was signaled, the
// command is interrupted and has a minute to end; the status is then 130.
func command(ctx context.Context, args, env []string) (int, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	err := cmd.Run()
	if ctx.Err() != nil {
		return 130, nil
	}
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return failed.ExitCode(), nil
	}
	return 0, err
}

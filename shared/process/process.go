// Package process contains the common main function of the mesh's processes: it reads the settings, opens the needed
// stores in the order Postgres, Redis, Kafka, runs a service until a signal stops it, and closes everything in reverse.
// If a process cannot start or fails, it writes the reason as one line to standard error and exits with status 1.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// startTime is how long all stores together may take to respond at the start.
const startTime = 30 * time.Second

// Env is the environment of one service of the mesh.
type Env struct {
	Config    config.Config
	Stores    *backend.Stores
	Catalog   *catalog.Catalog
	Log       *slog.Logger
	Telemetry *telemetry.Telemetry
	Ready     func() // called once the service is ready; may be nil

	// Instance is the name of the process among the processes of its service. It must be the same after a restart:
	// when the process ends, Kafka keeps its partitions for some seconds for a process with the same name. If Instance
	// is empty, the other processes take over the partitions at once.
	Instance string
}

// Needs are the stores that a service uses.
type Needs struct{ Postgres, Redis, Kafka bool }

// Main runs a service as a process of its own and returns the exit status. The first signal (see UntilSignal) cancels
// the context of the function run; a second signal ends the process at once.
func Main(service string, needs Needs, run func(context.Context, Env) error) int {
	log := NewLog(os.Stderr).With("service", service)
	ctx, released := UntilSignal(context.Background(), log)
	defer released()
	err := serve(ctx, service, needs, log, run)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // the process was stopped before it was ready
	}
	if err != nil {
		Fail(os.Stderr, service, err)
		return 1
	}
	return 0
}

// NewLog returns the logger of a process. The package go-redis writes every failed connection to standard
// error; NewLog redirects this output to the logger's debug level.
func NewLog(w io.Writer) *slog.Logger {
	log := slog.New(slog.NewTextHandler(w, nil))
	redis.SetLogger(redisLog{log})
	return log
}

type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, args ...any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, "redis: "+fmt.Sprintf(format, args...))
	}
}

// UntilSignal returns a context that ends with the first interrupt, termination or hang-up signal (SIGINT, SIGTERM or,
// unless the process ignores it, SIGHUP). A second signal ends the process with status 1. The context also ends when
// the function release is called; from then on, signals have their usual effect.
func UntilSignal(parent context.Context, log *slog.Logger) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup makes a process ignore SIGHUP
		signal.Notify(signals, syscall.SIGHUP)
	}
	released, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		select {
		case s := <-signals:
			log.Info("stopping; a second signal stops at once", "signal", s.String())
		case <-released:
			return
		}
		cancel()
		select {
		case <-signals:
			log.Warn("stopped at once")
			os.Exit(1)
		case <-released:
		}
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(released)
		<-ended
	})
}

// Fail prints on one line the error that ends a process.
func Fail(w io.Writer, name string, err error) {
	// An error of the output itself cannot be reported.
	_, _ = fmt.Fprintf(w, "%s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
}

// serve does the work of Main except for the signals and the exit status.
func serve(
	ctx context.Context, service string, needs Needs, log *slog.Logger, run func(context.Context, Env) error,
) (err error) {
	begun := time.Now()
	c, err := config.Load(service, os.Getenv)
	if err != nil {
		return err
	}
	for _, notice := range c.Notices {
		log.Info(notice)
	}
	TuneMemory(OneService, log)
	declared, err := catalog.Load()
	if err != nil {
		return err
	}
	stores, err := Open(ctx, c, needs, declared, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()
	traces, err := telemetry.Start(ctx, telemetry.Options{Service: service, Settings: c.Traces, Log: log})
	if err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	defer func() {
		// Send the last trace spans although ctx has ended.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if e := traces.Stop(last); e != nil {
			log.Warn("the last traces were not sent", "error", e)
		}
	}()
	ready := sync.OnceFunc(func() {
		log.Info("ready", "port", c.Port, "after", time.Since(begun).Round(time.Millisecond))
	})
	err = run(ctx, Env{Config: c, Stores: stores, Catalog: declared, Log: log, Telemetry: traces, Ready: ready})
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // the service stopped because ctx ended
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// Open opens the needed stores, in the order Postgres, Redis, Kafka, and creates missing topics. It stops at the first
// error.
func Open(
	ctx context.Context, c config.Config, needs Needs, declared *catalog.Catalog, log *slog.Logger,
) (_ *backend.Stores, err error) {
	stores := &backend.Stores{}
	defer func() {
		if err != nil {
			err = errors.Join(err, stores.Close())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if needs.Postgres {
		if stores.Postgres, err = c.Postgres.Open(ctx); err != nil {
			return nil, err
		}
	}
	if needs.Redis {
		if stores.Redis, err = c.Redis.Open(ctx); err != nil {
			return nil, err
		}
	}
	if needs.Kafka {
		stores.Kafka = c.Kafka
		differences, err := c.Kafka.EnsureTopics(ctx, declared.Topics(""))
		if err != nil {
			return nil, err
		}
		for _, d := range differences {
			log.Warn("the brokers differ from the catalog: " + d)
		}
	}
	return stores, nil
}

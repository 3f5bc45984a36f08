// Package process is what every process of the mesh does alike: it reads its settings, opens the stores that it needs
// in the order Postgres, Redis, Kafka, runs a service until it is told to stop, and closes all in reverse. If it cannot
// start, it writes the reason as one line on standard error and exits with status 1.
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

// startTime is how long a store may take to answer at the start.
const startTime = 30 * time.Second

// Env is what one service of the mesh runs with.
type Env struct {
	Config    config.Config
	Stores    *backend.Stores
	Catalog   *catalog.Catalog
	Log       *slog.Logger
	Telemetry *telemetry.Telemetry
	Ready     func() // called once, when it serves; may be nil

	// Instance names the process among those of its service, where it has the same name after a restart: its share of
	// the work is then kept for it for some seconds. Empty: whoever is there shares at once.
	Instance string
}

// Needs are the stores that a service works with.
type Needs struct{ Postgres, Redis, Kafka bool }

// Main runs a service as a process of its own and gives the exit status. The first interrupt or termination signal
// cancels run's context, a second one ends the process at once.
func Main(service string, needs Needs, run func(context.Context, Env) error) int {
	log := NewLog(os.Stderr).With("service", service)
	ctx, released := UntilSignal(context.Background(), log)
	defer released()
	err := serve(ctx, service, needs, log, run)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // it was stopped before it was ready
	}
	if err != nil {
		Fail(os.Stderr, service, err)
		return 1
	}
	return 0
}

// NewLog gives the log of a process. Libraries that would write lines of their own to standard error, as go-redis does
// of every connection that fails, are told to write them there, for those who debug.
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

// UntilSignal gives a context that ends with the first interrupt or termination signal. A second one ends the process.
func UntilSignal(parent context.Context, log *slog.Logger) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	released, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		select {
		case s := <-signals:
			log.Info("stopping; once more to stop at once", "signal", s.String())
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

// Fail tells on one line why a process ends.
func Fail(w io.Writer, name string, err error) {
	_, _ = fmt.Fprintf(w, "%s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; ")) // nobody else to tell
}

// serve does everything between the signals and the exit status.
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
		// The spans of the last requests are sent although ctx is over.
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
		err = nil // it stopped because it was told to
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// Open opens the stores that are needed, in the order Postgres, Redis, Kafka, and creates topics that are missing. The
// first that fails ends it.
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

package edumatrix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/chat"
	"github.com/edumatrix/interlinked/services/feed"
	"github.com/edumatrix/interlinked/services/gateway"
	"github.com/edumatrix/interlinked/services/notification"
	"github.com/edumatrix/interlinked/services/presence"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// service is one of the five services of this process.
type service struct {
	name string
	run  func(context.Context, process.Env) error
}

// services returns the services in the order in which they are started: the owners first, because the gateway calls
// them.
func services() []service {
	return []service{
		{"presence", presence.Run}, {"chat", chat.Run}, {"feed", feed.Run}, {"notification", notification.Run},
		{"gateway", gateway.Run},
	}
}

// up runs the mesh until ctx ends, or until a service or the embedded PostgreSQL fails.
func up(ctx context.Context, t Terminal, args []string) (err error) {
	if err := parse(flags("up", t), args); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // the mesh was stopped while it was starting
		}
	}()
	begun, log := time.Now(), process.NewLog(t.Err)
	c, err := config.Load(config.AllInOne, t.Getenv)
	if err != nil {
		return err
	}
	listeners, err := innerListeners(c.Peers)
	if err != nil {
		return err
	}
	for _, notice := range c.Notices {
		log.Info(notice)
	}
	process.TuneMemory(process.WholeMesh, log)
	dir, err := openDataDir(ctx, dataDirOf(t.Getenv))
	if err != nil {
		return err
	}
	defer dir.close()
	made, err := dir.secrets()
	if err != nil {
		return err
	}
	useSecrets(&c, made)
	declared, err := catalog.Load()
	if err != nil {
		return err
	}
	embeddedOnes, err := startStores(ctx, &c, dir, made, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, embeddedOnes.stop()) }()
	stores, err := process.Open(ctx, c, process.Needs{Postgres: true, Redis: true, Kafka: true}, declared, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()

	// Write the file before a listener responds, so that other subcommands find the mesh as soon as it is ready.
	here := fmt.Sprintf("localhost:%d", c.Port)
	err = dir.announce(runningMesh{Gateway: "http://" + here, Socket: "ws://" + here + "/ws",
		DatabaseURL: c.Postgres.URL, RedisURL: redisURL(c.Redis), Brokers: c.Kafka.Brokers,
		TopicPrefix: c.Kafka.TopicPrefix, JWTSecret: c.JWTSecret, PID: os.Getpid(),
		Services: c.Peers, ServiceSecret: c.ServiceSecret})
	if err != nil {
		return err
	}
	ready := func() {
		fmt.Fprintf(t.Out, "EDU Matrix Interlinked is ready after %.1f s: WebSocket ws://%s/ws, API http://%s/api/, "+
			"health http://%s/health, data in %s (Ctrl-C stops it)\n", time.Since(begun).Seconds(), here, here, here, dir.path)
	}
	return together{configs: configs(c, listeners), stores: stores, declared: declared, log: log, instance: instanceOf(c),
		lost: embeddedOnes.lost, ready: ready}.run(ctx)
}

// instanceOf returns the static member id of this process in the consumer groups of its services, or "" if this process
// has no static id. On an embedded broker this process is the only member, and with a static id it gets its partitions
// back at once after a restart. On shared brokers, two processes with the same id would endlessly remove each other
// from the group.
func instanceOf(c config.Config) string {
	if embedsKafka(c) {
		return "edumatrix-up"
	}
	return ""
}

// useSecrets sets missing secrets. JWT_SECRET gets the generated secret, unless JWKS_URL is set. SERVICE_SECRET gets a
// secret that is derived from the generated one. It also sets AnyLocalOrigin, so that web pages from any port of this
// machine can connect.
func useSecrets(c *config.Config, made secrets) {
	if c.JWTSecret == "" && c.JWKSURL == "" {
		c.JWTSecret = made.JWTSecret
	}
	if c.ServiceSecret == "" {
		c.ServiceSecret = config.DeriveServiceSecret(made.JWTSecret)
	}
	c.AnyLocalOrigin = true
}

// configs returns the configuration of each service: the gateway listens on PORT, and each other service at its own
// URL.
func configs(c config.Config, listeners map[string]listener) map[string]config.Config {
	all := map[string]config.Config{}
	for _, s := range services() {
		own := c
		own.Service = s.name
		if s.name != "gateway" {
			own.Host, own.Port = listeners[s.name].host, listeners[s.name].port
			own.PortVariable = peerVariable(s.name)
		}
		all[s.name] = own
	}
	return all
}

// together runs all five services in one process.
type together struct {
	configs  map[string]config.Config
	stores   *backend.Stores
	declared *catalog.Catalog
	log      *slog.Logger
	instance string       // see instanceOf
	lost     <-chan error // receives an error when the embedded PostgreSQL has ended unexpectedly
	ready    func()
	exporter sdktrace.SpanExporter // receives all trace spans in tests; if nil, they are exported as configured
}

// run serves until ctx ends, or until a service or the embedded PostgreSQL fails. When ctx ends, it stops the gateway
// first and then the owners, so that the gateway can notify its clients and the last commands still get their outcomes.
// After a failure, it stops all services at once.
func (t together) run(ctx context.Context) error {
	owners, stopOwners := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOwners()
	all, failed := errgroup.WithContext(owners)
	front, stopFront := context.WithCancel(ctx)
	defer stopFront()
	context.AfterFunc(failed, stopFront)

	readiness := make(chan string, len(services()))
	gatewayEnded := make(chan struct{})
	for _, s := range services() {
		env, stopTraces, err := t.env(ctx, s.name, func() { readiness <- s.name })
		if err != nil {
			stopOwners()
			return errors.Join(err, all.Wait())
		}
		all.Go(func() error {
			defer stopTraces()
			runFor := failed
			if s.name == "gateway" {
				runFor = front
				defer close(gatewayEnded)
			}
			if err := s.run(runFor, env); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			return nil
		})
	}
	all.Go(func() error {
		for range services() {
			select {
			case <-readiness:
			case <-failed.Done():
				return nil
			case <-gatewayEnded:
				return nil
			}
		}
		t.ready()
		return nil
	})
	all.Go(func() error {
		select {
		case err := <-t.lost:
			return err
		case <-gatewayEnded:
			stopOwners()
			return nil
		case <-failed.Done():
			return nil
		}
	})
	err := all.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// env returns the environment of one service. Services share everything except the configuration, the traces, the name
// in the logs and the function ready.
func (t together) env(ctx context.Context, service string, ready func()) (_ process.Env, stopTraces func(), _ error) {
	log := t.log.With("service", service)
	traces, err := telemetry.Start(ctx, telemetry.Options{Service: service, Settings: t.configs[service].Traces,
		Exporter: t.exporter, Log: log})
	if err != nil {
		return process.Env{}, nil, fmt.Errorf("%s: traces: %w", service, err)
	}
	stopTraces = func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if err := traces.Stop(last); err != nil {
			log.Warn("the last traces were not exported", "error", err)
		}
	}
	return process.Env{Config: t.configs[service], Stores: t.stores, Catalog: t.declared, Telemetry: traces, Log: log,
		Ready: ready, Instance: t.instance}, stopTraces, nil
}

func redisURL(r backend.Redis) string {
	if r.URL != "" {
		return r.URL
	}
	u := url.URL{Scheme: "redis", Host: fmt.Sprintf("%s:%d", r.Host, r.Port), Path: "/0"}
	if r.Password != "" {
		u.User = url.UserPassword("", r.Password)
	}
	return u.String()
}

package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/services/gateway/fanout"
	"github.com/edumatrix/interlinked/shared/health"
	"github.com/edumatrix/interlinked/shared/process"
)

// watch checks the health of the gateway, and serves the results and the metrics over HTTP.
type watch struct {
	env    process.Env
	client *http.Client
	health *health.Health
	fan    *fanout.Fanout
	ending atomic.Bool
}

func newWatch(env process.Env, client *http.Client) *watch {
	w := &watch{env: env, client: client}
	w.health = health.New([]health.Check{
		{Name: "redis", Check: func(ctx context.Context) error {
			if env.Stores.Redis == nil {
				return errors.New("not connected")
			}
			return env.Stores.Redis.Ping(ctx).Err()
		}},
		{Name: "kafka", Check: env.Stores.Kafka.Check},
		{Name: "postgres", Check: w.owners},
		{Name: "socketio", Check: func(context.Context) error {
			if w.ending.Load() {
				return errors.New("stopping")
			}
			return w.fan.Reading()
		}},
	}, env.Log)
	return w
}

// follow makes the state of the fan-out a part of the gateway's health. It must be called before run and before the
// first request.
func (w *watch) follow(fan *fanout.Fanout) { w.fan = fan }

// owners returns an error if an owner does not respond, or does not reach its PostgreSQL database. An owner without a
// database reports that it reaches one. The gateway itself has no database.
func (w *watch) owners(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, owner := range w.env.Catalog.Owners() {
		g.Go(func() error {
			if err := w.owner(ctx, w.env.Config.Peers[owner]); err != nil {
				return fmt.Errorf("%s: %w", owner, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (w *watch) owner(ctx context.Context, base string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/health", nil)
	if err != nil {
		return err
	}
	response, err := w.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	var health struct {
		Services struct {
			Postgres bool `json:"postgres"`
		} `json:"services"`
	}
	if err := json.NewDecoder(response.Body).Decode(&health); err != nil {
		return fmt.Errorf("read its health: %w", err)
	}
	if !health.Services.Postgres {
		return errors.New("does not reach its PostgreSQL database")
	}
	return nil
}

func (w *watch) mount(mux *http.ServeMux) {
	h := w.health.Handler()
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		mux.Handle(path, h)
	}
}

// serveMetrics serves only /metrics, until the context ends. The metrics contain names of topics and rates of
// traffic, which are not meant for everyone who can reach the clients' port.
func (w *watch) serveMetrics(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", w.health.Handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics at %s: %w", listener.Addr(), err)
	}
	return nil
}

// run checks the health until the context ends. It calls the function ready when the fan-out has a position in every
// partition, tokens can be checked, and all checks of /health have succeeded at the same time (see health.Began).
func (w *watch) run(ctx context.Context, keys <-chan struct{}, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.health.Run(ctx) })
	g.Go(func() error {
		for _, owner := range w.env.Catalog.Owners() {
			select {
			case <-w.fan.Known(owner):
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-keys: // closed when the keys with which tokens are checked are known
		case <-ctx.Done():
			return nil
		}
		w.health.SetReady(!w.ending.Load())
		select {
		case <-w.health.Began():
		case <-ctx.Done():
			return nil
		}
		if ready != nil {
			ready()
		}
		return nil
	})
	return g.Wait()
}

func (w *watch) stopping() {
	w.ending.Store(true)
	w.health.SetReady(false)
}

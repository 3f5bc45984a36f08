// Package gateway is the service that clients connect to: they send commands, queries and signals, and get the events
// of their rooms. It contains no domain rules; commands, events, queries and signals are declared in proto/.
//
// A command passes through the packages ws and protocol, or over HTTP through httpapi, and then through intake to
// Kafka. An event passes from Kafka through fanout and hub into the queues of connections, and then through ws to the
// clients.
package gateway

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/fanout"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/httpapi"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/lease"
	"github.com/edumatrix/interlinked/services/gateway/protocol"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/rooms"
	"github.com/edumatrix/interlinked/services/gateway/signal"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// socketPath is the URL path at which clients open WebSockets.
const socketPath = "/ws"

// Run serves clients until the context ends or a part of the gateway fails. Then it waits until the commands in flight
// are answered and the connections have ended, for about 10 s at most.
func Run(ctx context.Context, env process.Env) error { return run(ctx, env, settings{}) }

// settings can be changed by tests. Zero values stand for the defaults.
type settings struct {
	listener  net.Listener
	metrics   net.Listener
	patience  time.Duration // how long a client waits for an outcome
	handshake time.Duration
	connect   time.Duration // how long the reply to connect may take
	ping      time.Duration
	limits    hub.Limits
	perUser   int
	cover     time.Duration                                            // see hub.Options.CoverEvery
	lease     time.Duration                                            // how long a subscription lasts without a renewal
	hold      func(ctx context.Context, topic string, partition int32) // called before each record is handled
}

func run(ctx context.Context, env process.Env, set settings) error {
	config, log, tracer := env.Config, env.Log, env.Telemetry.Tracer()

	// The services and stores that the gateway calls.
	verifier, err := auth.NewVerifier(ctx, auth.Options{Secret: config.JWTSecret, JWKSURL: config.JWKSURL,
		Audience: config.JWTAudience, Issuer: config.JWTIssuer, RoleClaim: config.JWTRoleClaim, Log: log})
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	publisher, err := bus.NewPublisher(env.Stores.Kafka, log)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	defer func() { _ = publisher.Close() }()
	client := rpc.NewClient(rpc.Credential(config.ServiceSecret), tracer)
	// The client quiet is for frequent calls, such as health checks and reports of connections. It records no traces.
	quiet := rpc.NewClient(rpc.Credential(config.ServiceSecret), noop.Tracer{})
	owners := map[string]meshv1connect.OwnerServiceClient{}
	for _, owner := range env.Catalog.Owners() {
		owners[owner] = meshv1connect.NewOwnerServiceClient(client, config.Peers[owner])
	}

	key, err := resumeTokenKey(config.ServiceSecret)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}

	// The parts of the gateway.
	watch := newWatch(env, quiet)
	metrics := watch.health.Registry()
	guarded := guard.New(log, metrics)
	connections := hub.New(hub.Options{Catalog: env.Catalog, Limits: set.limits, PerUser: set.perUser,
		CoverEvery: set.cover, TokenKey: key, Metrics: hub.NewMetrics(metrics)})
	commands := intake.New(intake.Options{Catalog: env.Catalog, Publisher: publisher, Patience: set.patience, Log: log,
		Guard: guarded, Metrics: intake.NewMetrics(metrics)})
	fan := fanout.New(fanout.Options{Catalog: env.Catalog, Hub: connections, Owners: owners,
		Partitions: publisher.Partitions, Resolve: commands.Resolve, Ready: commands.SetReady,
		Waiting: watch.health.Waiting, Tracer: tracer, Guard: guarded,
		Metrics: fanout.NewMetrics(metrics), Log: log})
	watch.follow(fan)
	reader, err := bus.NewReader(env.Stores.Kafka, bus.ReaderOptions{From: fan.From, Hold: set.hold, Log: log})
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	report := lease.New(lease.Options{Log: log,
		Keeper: meshv1connect.NewConnectionServiceClient(quiet, config.Peers[env.Catalog.Connections()])})
	members := rooms.New(rooms.Options{Catalog: env.Catalog, Hub: connections, Owners: owners, Known: fan.Known,
		Missed: hub.Bounds{Events: config.ResumeEvents}, Lease: set.lease, Guard: guarded,
		Unsubscribed: func(c *hub.Conn) { report.Subscribed(c.ID) },
		Metrics:      rooms.NewMetrics(metrics), Log: log})
	signals := signal.New(signal.Options{Catalog: env.Catalog, Hub: connections, Redis: env.Stores.Redis,
		Prefix: config.Kafka.TopicPrefix, Guard: guarded,
		Metrics: signal.NewMetrics(metrics), Log: log})
	queries := query.New(env.Catalog, config.Peers, client, tracer)

	// The listeners for clients.
	door := &access.Access{Verifier: verifier, Origins: config.AllowedOrigins, AnyLocal: config.AnyLocalOrigin, Log: log}
	mesh := &protocol.Parts{Catalog: env.Catalog, Access: door, Hub: connections, Rooms: members, Intake: commands,
		Queries: queries, Lease: report, Signals: signals, Guard: guarded, Tracer: tracer,
		ConnectWithin: set.connect, Log: log}
	queries.Users = &mesh.Users
	sockets := ws.New(ws.Options{Access: door, Handshake: set.handshake, Ping: set.ping, Metrics: ws.NewMetrics(metrics),
		Guard: guarded, Log: log, Mesh: mesh})
	mux := http.NewServeMux()
	mux.Handle(socketPath, sockets)
	api := &httpapi.Server{Access: door, Catalog: env.Catalog, Intake: commands, Queries: queries,
		Users: &mesh.Users, Hub: connections, Guard: guarded, Tracer: tracer, Log: log}
	watch.mount(mux)
	if err := mountDocs(mux); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	listener := set.listener
	if listener == nil {
		address := net.JoinHostPort(config.Host, strconv.Itoa(config.Port))
		if listener, err = net.Listen("tcp", address); err != nil {
			return fmt.Errorf("gateway: serve clients at %s: %w (is another gateway running? %s chooses another port)",
				address, err, config.PortVariable)
		}
	}

	metricsListener := set.metrics
	if metricsListener == nil && config.MetricsPort != 0 {
		address := net.JoinHostPort(config.MetricsHost, strconv.Itoa(config.MetricsPort))
		if metricsListener, err = net.Listen("tcp", address); err != nil {
			_ = listener.Close()
			return fmt.Errorf("gateway: serve metrics at %s: %w (is another process using the port? METRICS_PORT chooses another port)",
				address, err)
		}
	}

	bounded := &boundedListener{Listener: listener, max: maxConnections()}
	server := &http.Server{Handler: bounded.full(route(api, mux), sockets.RefuseFull), ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10}

	// Background work continues while the gateway stops, so that commands in flight are answered.
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { return fan.Run(work, reader) })
	g.Go(func() error { return commands.Run(work) })
	g.Go(func() error { return members.Run(work) })
	g.Go(func() error { return connections.Run(work) })
	g.Go(func() error { return report.Run(work) })
	g.Go(func() error { return signals.Run(work) })
	g.Go(func() error { return watch.run(work, verifier.Ready(), env.Ready) })
	g.Go(func() error {
		if err := server.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve clients at %s: %w", listener.Addr(), err)
		}
		return nil
	})
	if metricsListener != nil {
		g.Go(func() error { return watch.serveMetrics(work, metricsListener) })
		log.Info("gateway: serves metrics", "address", metricsListener.Addr().String())
	}
	log.Info("gateway: serves clients", "address", listener.Addr().String())

	select {
	case <-ctx.Done():
	case <-work.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	watch.stopping()
	sockets.Stop()
	commands.Close(stopping)
	connections.Close(hub.Shutdown)
	sockets.Wait(stopping)
	_ = server.Shutdown(stopping)
	_ = server.Close()
	end()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("gateway: %w", err)
	}
	return nil
}

// resumeTokenKey returns the key with which all gateways of an installation authenticate resume tokens. The key does
// not reveal the service secret.
func resumeTokenKey(serviceSecret string) ([]byte, error) {
	return hkdf.Key(sha256.New, []byte(serviceSecret), nil, "edumatrix resume tokens", sha256.Size)
}

// route returns a handler that passes requests for /api and for the paths under it to the handler api, and all other
// requests to the handler others. It recognizes every spelling of these paths, such as //api/chat.history. A ServeMux
// would redirect a request with such a spelling, and many clients do not send a POST again after a redirect.
func route(api, others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if at := path.Clean(r.URL.Path); at == "/api" || strings.HasPrefix(at, "/api/") {
			api.ServeHTTP(w, r)
			return
		}
		others.ServeHTTP(w, r)
	})
}

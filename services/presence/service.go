// Package presence is the service that keeps who is online and on which devices, as state in Redis. Gateways report
// their connections under a lease: all connections of a gateway that does not report for a few seconds are taken for
// closed.
package presence

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1/presencev1connect"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/health"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Needs are the stores that presence uses.
var Needs = process.Needs{Redis: true, Kafka: true}

// stopWithin bounds the time for commands under way when the service stops.
const stopWithin = 10 * time.Second

// lease is how long a gateway may go without a report, which it sends every second.
const lease = 5 * time.Second

// Run serves until ctx ends.
func Run(ctx context.Context, env process.Env) (err error) {
	tracer := env.Telemetry.Tracer()
	status := health.New(health.OfStores(env.Stores), env.Log)
	server, err := rpc.NewServer(rpc.ServerOptions{Addr: net.JoinHostPort(env.Config.Host, strconv.Itoa(env.Config.Port)),
		PortVariable: env.Config.PortVariable, Credential: rpc.Credential(env.Config.ServiceSecret),
		Health: status.Handler(), Log: env.Log, Tracer: tracer})
	if err != nil {
		return err
	}
	producer, err := bus.NewPublisher(env.Stores.Kafka, env.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, producer.Close()) }()

	subscriber, err := bus.NewSubscriber(env.Stores.Kafka, bus.SubscriberOptions{Group: env.Config.Service,
		InstanceID: env.Instance, Log: env.Log})
	if err != nil {
		return err
	}

	s := store.New(env.Stores.Redis, env.Config.Kafka.TopicPrefix, lease)
	p := &publisher{store: s, catalog: env.Catalog, bus: producer, log: env.Log, waiting: status.Waiting,
		lease: lease, wake: make(chan struct{}, 1)}
	options := rpc.Interceptors(env.Log, tracer)
	server.Handle(meshv1connect.NewConnectionServiceHandler(&connections{s, p.soon}, options))
	server.Handle(meshv1connect.NewOwnerServiceHandler(&owner{s, env.Catalog}, options))
	server.Handle(presencev1connect.NewPresenceServiceHandler(&queries{s}, options))
	server.Handle(meshv1connect.NewOperatorServiceHandler(&operator{store: s}, options))
	asked := &commands{store: s, catalog: env.Catalog, publisher: producer}
	router, err := bus.NewRouter(bus.RouterOptions{Service: env.Config.Service, Publisher: producer,
		DeadLetterTopic: catalog.DeadLetterTopic(env.Config.Service), OnDeadLetter: asked.dead, Waiting: status.Waiting,
		CloseTimeout: stopWithin, Tracer: tracer, Log: env.Log})
	if err != nil {
		return err
	}
	topic := catalog.CommandTopic(env.Config.Service)
	router.AddConsumerHandler("presence "+topic, topic, subscriber, asked.handle)

	all, running := errgroup.WithContext(ctx)
	all.Go(func() error { return status.Run(running) })
	all.Go(func() error { return server.Run(running) })
	all.Go(func() error { return p.run(running) })
	all.Go(func() error { return router.Run(running) })
	select {
	case <-router.Running():
		status.SetReady(true)
		select {
		case <-status.Began():
			if env.Ready != nil {
				env.Ready()
			}
		case <-running.Done():
		}
	case <-running.Done():
	}
	return all.Wait()
}

// Package service is the common part of the services that gateways and other services call: a listener for these
// calls, health, a publisher, a router for the topics that the service consumes, and the order in which these parts
// start and stop.
package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/health"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// stopWithin is the maximum time that Parts.Work lasts after the service was stopped, so that work in flight can end.
const stopWithin = 10 * time.Second

// Service has the listener, the health and the publisher of one service.
type Service struct {
	Name      string
	Health    *health.Health
	Publisher *bus.Publisher

	env    process.Env
	server *rpc.Server
}

// Open opens the publisher and the listener. Run closes both, except that the listener stays open until the process
// ends if the parts cannot be prepared.
func Open(env process.Env) (*Service, error) {
	s := &Service{Name: env.Config.Service, env: env, Health: health.New(health.OfStores(env.Stores), env.Log)}
	var err error
	if s.Publisher, err = bus.NewPublisher(env.Stores.Kafka, env.Log); err != nil {
		return nil, err
	}
	s.server, err = rpc.NewServer(rpc.ServerOptions{Addr: net.JoinHostPort(env.Config.Host, strconv.Itoa(env.Config.Port)),
		PortVariable: env.Config.PortVariable, Credential: rpc.Credential(env.Config.ServiceSecret),
		Health: s.Health.Handler(), Log: env.Log, Tracer: env.Telemetry.Tracer()})
	if err != nil {
		return nil, errors.Join(err, s.Publisher.Close())
	}
	return s, nil
}

// Close closes the publisher of a service that is not run. The listener ends with the process.
func (s *Service) Close() error { return s.Publisher.Close() }

// Handle registers the handler of a Connect service on the listener, before Run.
func (s *Service) Handle(path string, handler http.Handler) { s.server.Handle(path, handler) }

// Interceptors returns the options that every handler needs.
func (s *Service) Interceptors() connect.HandlerOption {
	return rpc.Interceptors(s.env.Log, s.env.Telemetry.Tracer())
}

// DeadLetter is a function that is called before a command becomes a dead letter, so that the command's sender gets an
// outcome. It may be called more than once for a command.
type DeadLetter func(ctx context.Context, m *message.Message, cause error) error

// Parts are the parts that a service runs in addition to its listener and its health.
type Parts struct {
	// Work ends when the service has stopped, or when the time for finishing work in flight is over.
	Work context.Context

	service    *Service
	router     *message.Router
	dead       DeadLetter
	background []part
	stopping   []func()
	finishing  []func()
}

type part struct {
	name string
	run  func(context.Context) error
}

// Consume makes the router pass the messages of a topic to the function handle. It overrides the fields Group,
// InstanceID and Log of the options.
func (p *Parts) Consume(topic string, o bus.SubscriberOptions, handle message.NoPublishHandlerFunc) error {
	o.Group, o.InstanceID, o.Log = p.service.Name, p.service.env.Instance, p.service.env.Log
	subscriber, err := bus.NewSubscriber(p.service.env.Stores.Kafka, o)
	if err != nil {
		return err
	}
	p.router.AddConsumerHandler(p.service.Name+" "+topic, topic, subscriber, handle)
	return nil
}

// ConsumeCommands makes the router pass the service's commands to the function handle. The function dead is called
// before a command becomes a dead letter.
func (p *Parts) ConsumeCommands(handle message.NoPublishHandlerFunc, dead DeadLetter) error {
	p.dead = dead
	return p.Consume(catalog.CommandTopic(p.service.Name), bus.SubscriberOptions{}, handle)
}

// Background adds a part that Run runs until the service has stopped. The part's context ends when the work in flight
// is finished or Parts.Work ends, or when another part has failed. An error of the part stops the service.
func (p *Parts) Background(name string, run func(context.Context) error) {
	p.background = append(p.background, part{name, run})
}

// WithIntake makes Run run a part that begins new work, as consuming does. The part ends together with consuming,
// before the parts in the background.
func (p *Parts) WithIntake(name string, run func(context.Context) error) {
	intake, stop := context.WithCancel(p.Work)
	ended := make(chan struct{})
	p.Background(name, func(ctx context.Context) error {
		defer close(ended)
		defer context.AfterFunc(ctx, stop)()
		return run(intake)
	})
	p.stopping = append(p.stopping, stop)
	p.Finish(func() { <-ended })
}

// Finish adds a function that waits for work in flight. The functions are called in order once nothing is consumed
// any more.
func (p *Parts) Finish(wait func()) { p.finishing = append(p.finishing, wait) }

// Run serves until ctx ends or a part fails. The function prepare adds the parts. When ctx has ended, Run stops
// consuming and the parts of WithIntake, and waits for work in flight; after 10 s, Parts.Work ends. The parts in the
// background and the listener stop last. When a part has failed, the contexts of all parts end at once.
func (s *Service) Run(ctx context.Context, prepare func(*Parts) error) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	p := &Parts{Work: work, service: s}
	var err error
	p.router, err = bus.NewRouter(bus.RouterOptions{Service: s.Name, Publisher: s.Publisher,
		DeadLetterTopic: catalog.DeadLetterTopic(s.Name), OnDeadLetter: p.onDeadLetter, Waiting: s.Health.Waiting,
		Tracer: s.env.Telemetry.Tracer(), Log: s.env.Log})
	if err == nil {
		err = prepare(p)
	}
	if err != nil {
		return errors.Join(err, s.Close())
	}
	stopConsuming, consumed := make(chan struct{}), make(chan error, 1)
	p.Background("health", s.Health.Run)
	p.Background("listener", s.server.Run)
	p.Background("router", func(ctx context.Context) error {
		err := bus.RunRouter(ctx, stopConsuming, p.router)
		select {
		case <-stopConsuming: // the service stops anyway; Run returns the error when the other parts have finished
			consumed <- err
			return nil
		default:
			close(consumed)
			return err
		}
	})
	running, failed := errgroup.WithContext(work)
	for _, one := range p.background {
		running.Go(func() error {
			if err := one.run(failed); err != nil && failed.Err() == nil {
				return fmt.Errorf("%s: %s: %w", s.Name, one.name, err)
			}
			return nil
		})
	}
	s.serve(ctx, failed, p.router.Running())

	s.Health.SetReady(false)
	close(stopConsuming)
	for _, stop := range p.stopping {
		stop()
	}
	timeout := time.AfterFunc(stopWithin, stopWork) // an unavailable dependency must not delay the stop for longer
	err = <-consumed
	for _, wait := range p.finishing {
		wait()
	}
	timeout.Stop()
	stopWork()
	return errors.Join(running.Wait(), err, s.Publisher.Close())
}

// serve marks the service as ready when it has begun to consume. When all health checks have succeeded as well, it
// calls env.Ready. It returns when the service has to stop.
func (s *Service) serve(ctx, failed context.Context, consuming <-chan struct{}) {
	wait := func(signal <-chan struct{}) bool {
		select {
		case <-signal:
			return true
		case <-ctx.Done():
		case <-failed.Done():
		}
		return false
	}
	if !wait(consuming) {
		return
	}
	s.Health.SetReady(true)
	if !wait(s.Health.Began()) {
		return
	}
	if s.env.Ready != nil {
		s.env.Ready()
	}
	wait(nil)
}

// onDeadLetter calls the function dead for a command that becomes a dead letter, so that the command gets an outcome.
// Events of other owners have no outcome.
func (p *Parts) onDeadLetter(ctx context.Context, m *message.Message, cause error) error {
	if topic, _ := bus.TopicOf(m.Context()); p.dead != nil && topic == catalog.CommandTopic(p.service.Name) {
		return p.dead(ctx, m, cause)
	}
	return nil
}

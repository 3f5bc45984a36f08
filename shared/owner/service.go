// Package owner runs services that own a log. They all decide commands on their aggregates, store the outcomes, relay
// their events, follow their log with projections, react to the events of other owners, and serve other services. A
// service contributes its aggregates, projections, reactions and queries.
package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/eventlog/relay"
	"github.com/edumatrix/interlinked/shared/health"
	"github.com/edumatrix/interlinked/shared/jobs"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// stopWithin is how long work in flight may take when the service stops.
const stopWithin = 10 * time.Second

// gatherDelay is how long events of other owners collect before more of them are fetched. No client waits for what is
// done on them. It is as long as projections collect commits.
const gatherDelay = 30 * time.Millisecond

// Service is one owner of a log. Its Run function calls the methods that configure it before it calls Run; they must
// not be called later.
type Service struct {
	Log *eventlog.Log

	name        string
	env         process.Env
	publisher   *bus.Publisher
	health      *health.Health
	server      *rpc.Server
	aggregates  map[string]NewState
	projections []*projection.Projection
	reactions   []reaction
	authorize   SubscribeAuthorizer
	workers     jobs.Workers
	effects     map[string]eventlog.Effect // by the event's type
	queries     consistency.Projections
	served      []string // paths of handlers
	decider     *decider // set by Run
}

type reaction struct {
	topic catalog.Topic // without an owner if it is not declared
	since consume.Since
	react consume.Reaction
}

// Open opens the service's log, with the migrations of its projections (nil: none), and its listener.
func Open(ctx context.Context, env process.Env, migrations fs.FS) (*Service, error) {
	name := env.Config.Service
	s := &Service{name: name, env: env, aggregates: map[string]NewState{}, effects: map[string]eventlog.Effect{},
		queries: consistency.Projections{}}
	s.health = health.New(health.OfStores(env.Stores), env.Log)
	var err error
	s.Log, err = eventlog.Open(ctx, eventlog.Options{Owner: name, Pool: env.Stores.Postgres, Catalog: env.Catalog,
		Migrations: migrations, Waiting: s.health.Waiting, Tracer: env.Telemetry.Tracer(), Log: env.Log})
	if err != nil {
		return nil, err
	}
	if s.publisher, err = bus.NewPublisher(env.Stores.Kafka, env.Log); err != nil {
		return nil, err
	}
	s.server, err = rpc.NewServer(rpc.ServerOptions{Addr: net.JoinHostPort(env.Config.Host, strconv.Itoa(env.Config.Port)),
		PortVariable: env.Config.PortVariable, Credential: rpc.Credential(env.Config.ServiceSecret),
		Health: s.health.Handler(), Log: env.Log, Tracer: env.Telemetry.Tracer()})
	if err != nil {
		return nil, errors.Join(err, s.publisher.Close())
	}
	return s, nil
}

// Decide registers the aggregate that decides the commands for streams of a kind ("conversation").
func (s *Service) Decide(kind string, aggregate NewState) { s.aggregates[kind] = aggregate }

// Project registers projections that follow the log. All tables of the service's migrations belong to one of them.
func (s *Service) Project(p ...*projection.Projection) { s.projections = append(s.projections, p...) }

// Workers returns the set to which jobs.Add adds the workers of the service's jobs. A service without workers has no
// queue.
func (s *Service) Workers() *jobs.Workers { return &s.workers }

// Effect registers an effect: jobs that are inserted with each event of a type ("chat.message_sent"), in the
// transaction that commits it.
func (s *Service) Effect(event string, effect eventlog.Effect) { s.effects[event] = effect }

// AuthorizeSubscribe registers the function that decides who may subscribe to rooms.
func (s *Service) AuthorizeSubscribe(authorize SubscribeAuthorizer) { s.authorize = authorize }

// React registers the reaction to a topic of another service. Its effects are events, and commands that the service's
// aggregates decide. Since is the time from which events count, if the topic was not consumed before. A topic has one
// reaction.
func (s *Service) React(topic string, since consume.Since, react consume.Reaction) {
	declared, _ := s.env.Catalog.Topic(topic)
	declared.Name = topic
	s.reactions = append(s.reactions, reaction{declared, since, react})
}

// Serve registers the handler of a Connect service on the inner listener.
func (s *Service) Serve(path string, handler http.Handler) {
	s.served = append(s.served, path)
	s.server.Handle(path, handler)
}

// Connect returns the options of the Connect handler of this service's queries, each of which is declared to read a
// projection. A query contains everything that was committed before it was sent (see consistency.Interceptor).
func (s *Service) Connect(projections consistency.Projections) connect.HandlerOption {
	maps.Copy(s.queries, projections)
	return connect.WithHandlerOptions(s.interceptors(),
		connect.WithInterceptors(consistency.Interceptor(s.Log, s.env.Catalog, projections)))
}

func (s *Service) interceptors() connect.HandlerOption {
	return rpc.Interceptors(s.env.Log, s.env.Telemetry.Tracer())
}

// Run serves until ctx ends. Then intake stops first, work in flight is finished, and the log's relay and the listener
// stop last.
func (s *Service) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	if err := errors.Join(s.validate(), projection.CheckTables(ctx, s.Log, jobs.IsTable, s.projections...)); err != nil {
		return fmt.Errorf("%s cannot start: %w", s.name, err)
	}
	s.Serve(meshv1connect.NewOwnerServiceHandler(&ownerServer{s.Log, s.authorize}, s.interceptors()))

	queue, err := s.queue(ctx)
	if err != nil {
		return err
	}
	consumers, err := s.consumers(ctx, work)
	if err != nil {
		return err
	}
	s.Serve(withoutReadDeadline(meshv1connect.NewOperatorServiceHandler(&operator{name: s.name, log: s.Log,
		projections: s.projections, consumers: consumers, jobs: queue, work: work}, s.interceptors())))
	router, waits, err := s.router(work, consumers)
	if err != nil {
		return err
	}
	running, failed := errgroup.WithContext(work)
	background := func(what string, run func(context.Context) error) {
		running.Go(func() error {
			if err := run(failed); err != nil && failed.Err() == nil {
				return fmt.Errorf("%s: %s: %w", s.name, what, err)
			}
			return nil
		})
	}
	background("event log", s.Log.Run)
	relayed := relay.New(s.Log, relay.Options{Publisher: s.publisher, Partitions: s.publisher.Partitions,
		LastRecords: s.lastRecords})
	background("relay", relayed.Run)
	for _, p := range s.projections {
		background("projection "+p.Name(), func(ctx context.Context) error { return s.Log.Follow(ctx, p) })
	}
	background("health", s.health.Run)
	background("listener", s.server.Run)
	background("router", router.Run)
	ticking, stopTicking := context.WithCancel(failed)
	defer stopTicking()
	if s.env.Catalog.HasTimers(s.name) {
		t := &timers{log: s.Log, catalog: s.env.Catalog, decider: s.decider, logger: s.env.Log, waiting: s.health.Waiting}
		ended := make(chan struct{})
		go func() { t.run(ticking); close(ended) }()
		waits = append([]func(){func() { stopTicking(); <-ended }}, waits...)
	}
	working, stopWorking := context.WithCancel(failed)
	defer stopWorking()
	if queue != nil {
		ended := make(chan struct{})
		background("jobs", func(context.Context) error { defer close(ended); return queue.Run(working) })
		waits = append(waits, func() { <-ended })
	}
	select {
	case <-router.Running():
		s.health.SetReady(true)
		background("readiness", func(ctx context.Context) error {
			select {
			case <-s.health.Began():
				if s.env.Ready != nil {
					s.env.Ready()
				}
			case <-ctx.Done():
			}
			return nil
		})
		select {
		case <-ctx.Done():
		case <-failed.Done():
		}
	case <-ctx.Done():
	case <-failed.Done():
	}

	s.health.SetReady(false)
	stopWorking()                                   // running jobs stop at the same time as intake
	timeout := time.AfterFunc(stopWithin, stopWork) // an unavailable dependency must not delay the stop
	err = router.Close()
	for _, wait := range waits {
		wait()
	}
	timeout.Stop()
	stopWork()
	return errors.Join(running.Wait(), err, s.publisher.Close())
}

// queue opens the queue of the service's jobs; nil: it has no workers.
func (s *Service) queue(ctx context.Context) (*jobs.Queue, error) {
	if s.workers.Empty() {
		return nil, nil
	}
	queue, err := jobs.Open(ctx, jobs.Options{Owner: s.name, Pool: s.env.Stores.Postgres, Workers: &s.workers,
		Log: s.env.Log})
	if err == nil {
		s.Log.Effects(queue, s.effects)
	}
	return queue, err
}

// lastRecords reads the newest record of each partition of a topic.
func (s *Service) lastRecords(ctx context.Context, topic string) ([]*message.Message, error) {
	records, err := bus.LastRecords(ctx, s.env.Stores.Kafka, topic)
	var messages []*message.Message
	for _, r := range records {
		if r != nil {
			messages = append(messages, r.Message(ctx))
		}
	}
	return messages, err
}

// validate returns an error if the service cannot do what is declared, before it accepts any work.
func (s *Service) validate() error {
	var problems []error
	for _, c := range s.env.Catalog.CommandsOf(s.name) {
		if s.aggregates[c.Kind()] == nil {
			problems = append(problems, fmt.Errorf("command %s: there is no aggregate for streams of kind %q", c.Name, c.Kind()))
		}
	}
	problems = append(problems, projection.Check(s.env.Catalog, s.name, s.projections...))
	var projections []string
	for _, p := range s.projections {
		projections = append(projections, p.Name())
	}
	problems = append(problems, s.queries.Validate(s.env.Catalog, s.name, s.served, projections)...)
	topics := map[string]bool{}
	for _, r := range s.reactions {
		if topics[r.topic.Name] {
			problems = append(problems, fmt.Errorf("two reactions to %q: they would share its checkpoints", r.topic.Name))
		}
		topics[r.topic.Name] = true
		switch {
		case r.topic.Owner == "":
			problems = append(problems, fmt.Errorf("a reaction to %q: no service declares this topic", r.topic.Name))
		case r.topic.Owner == s.name:
			problems = append(problems, fmt.Errorf("a reaction to %q: it is the service's own topic; use a projection, or return "+
				"events for several streams from an aggregate", r.topic.Name))
		case slices.Contains(s.env.Catalog.StateTopics(), r.topic):
			problems = append(problems, fmt.Errorf("a reaction to %q: it has state of %s, and no events of a log", r.topic.Name,
				r.topic.Owner))
		}
	}
	for event := range s.effects {
		if e, ok := s.env.Catalog.Event(event); !ok || e.Owner != s.name {
			problems = append(problems, fmt.Errorf("an effect of %q: %s has no such event", event, s.name))
		}
	}
	if len(s.effects) > 0 && s.workers.Empty() {
		problems = append(problems, errors.New("events have effects, but no workers are registered"))
	}
	return errors.Join(problems...)
}

// consumers returns the consumers of other owners' topics. A service that has some also has a topic for replays.
func (s *Service) consumers(ctx, work context.Context) (all []*consume.Consumer, err error) {
	if len(s.reactions) == 0 {
		return nil, nil
	}
	if _, err := s.env.Stores.Kafka.EnsureTopics(ctx, []catalog.Topic{ReplayTopic(s.name)}); err != nil {
		return nil, err
	}
	client := rpc.NewClient(rpc.Credential(s.env.Config.ServiceSecret), s.env.Telemetry.Tracer())
	for _, r := range s.reactions {
		c, err := consume.New(work, consume.Options{Source: r.topic.Owner, Topic: r.topic.Name, Since: r.since, React: r.react,
			Partitions: r.topic.Partitions, Log: s.Log, Commit: s.commitDeciding, Catalog: s.env.Catalog,
			Owner:   meshv1connect.NewOwnerServiceClient(client, s.env.Config.Peers[r.topic.Owner]),
			Waiting: s.health.Waiting, Logger: s.env.Log})
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// commitDeciding decides the commands of reactions. No event arrives before the decider is set.
func (s *Service) commitDeciding(ctx context.Context, commands []consume.Command, w eventlog.Write) (
	eventlog.Committed, error) {
	return s.decider.commitDeciding(ctx, commands, w)
}

// router returns the router of everything that the service consumes, and functions that wait for work in flight.
func (s *Service) router(work context.Context, consumers []*consume.Consumer) (*message.Router, []func(), error) {
	d, err := newDecider(work, decider{log: s.Log, catalog: s.env.Catalog, aggregates: s.aggregates,
		tracer: s.env.Telemetry.Tracer(), logger: s.env.Log, waiting: s.health.Waiting, now: time.Now})
	if err != nil {
		return nil, nil, err
	}
	s.decider = d
	c := &commands{service: s.name, catalog: s.env.Catalog, decider: d, publisher: s.publisher}
	router, err := bus.NewRouter(bus.RouterOptions{Service: s.name, Publisher: s.publisher,
		DeadLetterTopic: catalog.DeadLetterTopic(s.name), OnDeadLetter: s.onDeadLetter(c), Waiting: s.health.Waiting,
		Tracer: s.env.Telemetry.Tracer(), Log: s.env.Log})
	if err != nil {
		return nil, nil, err
	}
	waits := []func(){d.mailboxes.wait}
	subscribe := func(topic string, o bus.SubscriberOptions, handle message.NoPublishHandlerFunc) error {
		o.Group, o.InstanceID, o.Log = s.name, s.env.Instance, s.env.Log
		subscriber, err := bus.NewSubscriber(s.env.Stores.Kafka, o)
		if err != nil {
			return err
		}
		router.AddConsumerHandler(s.name+" "+topic, topic, subscriber, handle)
		return nil
	}
	if len(s.aggregates) > 0 {
		if err := subscribe(catalog.CommandTopic(s.name), bus.SubscriberOptions{}, c.handle); err != nil {
			return nil, nil, err
		}
	}
	for _, r := range consumers {
		waits = append(waits, r.Wait)
		o := bus.SubscriberOptions{InOrder: true, Window: consume.Window, Gather: gatherDelay}
		if err := subscribe(r.Topic(), o, r.Handle); err != nil {
			return nil, nil, err
		}
	}
	if len(consumers) > 0 {
		replays := &replays{s.env.Catalog, consumers}
		if err := subscribe(ReplayTopic(s.name).Name, bus.SubscriberOptions{}, replays.handle); err != nil {
			return nil, nil, err
		}
	}
	return router, waits, nil
}

// onDeadLetter returns the function that gives commands which become dead letters their outcome. An event of another
// owner has none.
func (s *Service) onDeadLetter(c *commands) func(context.Context, *message.Message, error) error {
	return func(ctx context.Context, m *message.Message, err error) error {
		if topic, _ := bus.TopicOf(m.Context()); strings.HasSuffix(topic, catalog.CommandTopic(s.name)) {
			return c.recordDeadLetter(ctx, m, err)
		}
		return nil
	}
}

// Package owner runs services that own a log. For each such service, the package decides commands, stores their
// outcomes, relays the events of the log, follows the log with projections, reacts to the events of other owners, and
// serves other services. The service itself contributes its aggregates, projections, reactions and queries.
package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/eventlog/relay"
	"github.com/edumatrix/interlinked/shared/jobs"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
	"github.com/edumatrix/interlinked/shared/service"
)

// gatherDelay is how long a consumer lets events of other owners accumulate before it fetches them. The delay saves CPU
// time, and no client waits for the effects of these events. Projections let commits accumulate equally long, unless a
// query waits.
const gatherDelay = 30 * time.Millisecond

// Service is one owner of a log. The methods that configure it must be called before Run.
type Service struct {
	Log *eventlog.Log

	name        string
	env         process.Env
	common      *service.Service
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
	topic catalog.Topic // has no owner if no service declares the topic
	since consume.Since
	react consume.Reaction
}

// Open opens the service's log, with the migrations of its projections (nil: none), and the service's listener.
func Open(ctx context.Context, env process.Env, migrations fs.FS) (*Service, error) {
	name := env.Config.Service
	common, err := service.Open(env)
	if err != nil {
		return nil, err
	}
	s := &Service{name: name, env: env, common: common, aggregates: map[string]NewState{},
		effects: map[string]eventlog.Effect{}, queries: consistency.Projections{}}
	s.Log, err = eventlog.Open(ctx, eventlog.Options{Owner: name, Pool: env.Stores.Postgres, Catalog: env.Catalog,
		Migrations: migrations, Waiting: common.Health.Waiting, Tracer: env.Telemetry.Tracer(), Log: env.Log})
	if err != nil {
		return nil, errors.Join(err, common.Close())
	}
	return s, nil
}

// HandleCommands registers the aggregate that decides the commands for streams of a kind ("conversation").
func (s *Service) HandleCommands(kind string, aggregate NewState) { s.aggregates[kind] = aggregate }

// Project registers projections that follow the log. Each table of the service's migrations must belong to one of them.
func (s *Service) Project(p ...*projection.Projection) { s.projections = append(s.projections, p...) }

// Workers returns the set to which jobs.Add adds the workers of the service's jobs. A service without workers has no
// job queue.
func (s *Service) Workers() *jobs.Workers { return &s.workers }

// Jobs registers the effect of each event of a type ("chat.message_sent"): the jobs that are inserted in the
// transaction that commits the event. A later call for the same type replaces the effect.
func (s *Service) Jobs(event string, effect eventlog.Effect) { s.effects[event] = effect }

// AuthorizeSubscribe registers the function that decides which users may subscribe to rooms.
func (s *Service) AuthorizeSubscribe(authorize SubscribeAuthorizer) { s.authorize = authorize }

// React registers the reaction to a topic of another service. The reaction returns events, and commands that the
// service's aggregates decide. The parameter since determines where consumption begins if the service has not consumed
// the topic before. Each topic can have only one reaction.
func (s *Service) React(topic string, since consume.Since, react consume.Reaction) {
	declared, _ := s.env.Catalog.Topic(topic)
	declared.Name = topic
	s.reactions = append(s.reactions, reaction{declared, since, react})
}

// Serve registers the handler of a Connect service on the inner listener, which serves other services and operators and
// requires the service credential.
func (s *Service) Serve(path string, handler http.Handler) {
	s.served = append(s.served, path)
	s.common.Handle(path, handler)
}

// QueryOptions returns the options of the Connect handler of this service's queries. The parameter projections declares
// which projection each query reads. An answer contains every commit up to the position that the request names (see
// consistency.Interceptor).
func (s *Service) QueryOptions(projections consistency.Projections) connect.HandlerOption {
	maps.Copy(s.queries, projections)
	return connect.WithHandlerOptions(s.common.Interceptors(),
		connect.WithInterceptors(consistency.Interceptor(s.Log, s.env.Catalog, projections)))
}

// Run returns an error at once if the parts of the service do not match the catalog or the tables of its schema.
// Otherwise it serves until ctx ends or a part fails. When ctx has ended, Run stops everything that begins new work
// (consuming, timers, jobs), waits up to 10 s until running work is finished, and stops the other parts last, such as
// the log's relay and the listener. When a part has failed, the contexts of all parts end at once.
func (s *Service) Run(ctx context.Context) error {
	if err := errors.Join(s.validate(), projection.CheckTables(ctx, s.Log, jobs.IsTable, s.projections...)); err != nil {
		return errors.Join(fmt.Errorf("%s cannot start: %w", s.name, err), s.common.Close())
	}
	return s.common.Run(ctx, func(parts *service.Parts) error { return s.prepare(ctx, parts) })
}

// prepare adds the parts of an owner of a log. It uses ctx, the context of Run, only for the start; the parts run with
// contexts of their own.
func (s *Service) prepare(ctx context.Context, parts *service.Parts) error {
	s.Serve(meshv1connect.NewOwnerServiceHandler(&ownerServer{s.Log, s.authorize}, s.common.Interceptors()))
	queue, err := s.queue(ctx)
	if err != nil {
		return err
	}
	consumers, err := s.consumers(ctx, parts.Work)
	if err != nil {
		return err
	}
	s.Serve(withoutReadDeadline(meshv1connect.NewOperatorServiceHandler(&operator{name: s.name, log: s.Log,
		projections: s.projections, consumers: consumers, jobs: queue, work: parts.Work}, s.common.Interceptors())))
	parts.Background("event log", s.Log.Run)
	parts.Background("relay", relay.New(s.Log, relay.Options{Publisher: s.common.Publisher,
		Partitions: s.common.Publisher.Partitions, LastRecords: s.lastRecords}).Run)
	for _, p := range s.projections {
		parts.Background("projection "+p.Name(), func(ctx context.Context) error { return projection.Follow(ctx, s.Log, p) })
	}
	if err := s.intake(parts, consumers); err != nil {
		return err
	}
	if s.env.Catalog.HasTimers(s.name) {
		t := &timers{log: s.Log, catalog: s.env.Catalog, decider: s.decider, logger: s.env.Log, waiting: s.common.Health.Waiting}
		parts.WithIntake("timers", func(ctx context.Context) error { t.run(ctx); return nil })
	}
	if queue != nil {
		parts.WithIntake("jobs", queue.Run)
	}
	return nil
}

// queue opens the queue of the service's jobs. It returns nil if the service has no workers.
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

// lastRecords reads the newest record of each partition of a topic. It omits empty partitions.
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

// validate returns an error if the parts of the service do not match the catalog's declarations. Run calls it before
// the service accepts any work.
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
			problems = append(problems, fmt.Errorf("a reaction to %q: the topic contains state of %s, not events of a log", r.topic.Name,
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

// consumers returns the consumers of other owners' topics. For a service that has reactions, consumers also creates the
// service's replay topic (see ReplayTopic), unless the topic exists.
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
			Waiting: s.common.Health.Waiting, Logger: s.env.Log})
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// commitDeciding is the consume.Commit of the service's consumers. The consumers are created before s.decider is set,
// but call commitDeciding only later.
func (s *Service) commitDeciding(ctx context.Context, commands []consume.Command, w eventlog.Write) (
	eventlog.Committed, error) {
	return s.decider.commitDeciding(ctx, commands, w)
}

// intake creates the decider, and adds the consumption of commands, of other owners' topics, and of the service's
// replay topic (see ReplayTopic).
func (s *Service) intake(parts *service.Parts, consumers []*consume.Consumer) (err error) {
	s.decider, err = newDecider(parts.Work, decider{log: s.Log, catalog: s.env.Catalog, aggregates: s.aggregates,
		tracer: s.env.Telemetry.Tracer(), logger: s.env.Log, waiting: s.common.Health.Waiting, now: time.Now})
	if err != nil {
		return err
	}
	parts.Finish(s.decider.mailboxes.wait)
	if len(s.aggregates) > 0 {
		c := &commands{Topics: command.Topics{Service: s.name, Catalog: s.env.Catalog, Publisher: s.common.Publisher},
			decider: s.decider}
		if err := parts.ConsumeCommands(c.handle, c.recordDeadLetter); err != nil {
			return err
		}
	}
	for _, r := range consumers {
		parts.Finish(r.Wait)
		o := bus.SubscriberOptions{InOrder: true, Window: consume.Window, Gather: gatherDelay}
		if err := parts.Consume(r.Topic(), o, r.Handle); err != nil {
			return err
		}
	}
	if len(consumers) == 0 {
		return nil
	}
	replays := &replays{s.env.Catalog, consumers}
	return parts.Consume(ReplayTopic(s.name).Name, bus.SubscriberOptions{}, replays.handle)
}

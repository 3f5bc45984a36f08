// Package presence is the service that stores in Redis which users are online and on which devices. Each gateway
// reports its connections and holds a lease that every report renews. When a gateway has not reported for five seconds,
// the lease expires, and the connections of the gateway count as closed.
package presence

import (
	"context"
	"time"

	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1/presencev1connect"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/service"
)

// Needs are the stores that presence uses.
var Needs = process.Needs{Redis: true, Kafka: true}

// lease is the time without a report after which the connections of a gateway count as closed. Gateways report every
// second.
const lease = 5 * time.Second

// Run serves until ctx ends.
func Run(ctx context.Context, env process.Env) error {
	s, err := service.Open(env)
	if err != nil {
		return err
	}
	kept := store.New(env.Stores.Redis, env.Config.Kafka.TopicPrefix, lease)
	p := &publisher{store: kept, catalog: env.Catalog, bus: s.Publisher, log: env.Log, waiting: s.Health.Waiting,
		lease: lease, wake: make(chan struct{}, 1)}
	sent := &commands{store: kept,
		Topics: command.Topics{Service: env.Config.Service, Catalog: env.Catalog, Publisher: s.Publisher}}
	options := s.Interceptors()
	s.Handle(meshv1connect.NewConnectionServiceHandler(&connections{kept, p.soon}, options))
	s.Handle(meshv1connect.NewOwnerServiceHandler(&owner{kept, env.Catalog}, options))
	s.Handle(presencev1connect.NewPresenceServiceHandler(&queries{kept}, options))
	s.Handle(meshv1connect.NewOperatorServiceHandler(&operator{store: kept}, options))
	return s.Run(ctx, func(parts *service.Parts) error {
		parts.Background("publisher", p.run)
		return parts.ConsumeCommands(sent.handle, sent.deadLetter)
	})
}

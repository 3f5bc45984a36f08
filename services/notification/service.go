// Package notification is the service that reacts to the events of other services and notifies users.
package notification

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/notification/rule"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/process"
)

// Needs are the stores that notification uses.
var Needs = process.Needs{Postgres: true, Kafka: true}

// Run serves until ctx ends.
func Run(ctx context.Context, env process.Env) error {
	s, err := owner.Open(ctx, env, nil) // no tables of its own: its notifications are events in its log
	if err != nil {
		return err
	}
	// FromTime applies only until the service has received the first record of the topic. Later runs continue from the
	// stored checkpoints.
	s.React("chat-events", consume.FromTime(time.Now().Add(-maxEventAge)), raise)
	return s.Run(ctx)
}

// maxEventAge is the maximum age of the events that raise notifications when this service consumes a topic for the
// first time. It is longer than a new installation takes to start. It is short enough that users of an installation
// that adds this service later are not notified of old events.
const maxEventAge = time.Hour

// raise returns the notifications that the rules raise for an event, as effects on the recipients' streams.
func raise(e envelope.Event, event proto.Message) (effects []consume.Effect) {
	about := rule.About{ID: e.ID, Stream: e.Stream, Version: e.Version, Actor: e.Actor, Event: event}
	for _, r := range rule.Raise(about) {
		effects = append(effects, consume.Effect{Stream: catalog.Address("notifications", r.GetRecipientId()), Events: []proto.Message{r}})
	}
	return effects
}

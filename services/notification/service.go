// Package notification is the service that listens to everything and tells people what they should know of.
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

// Needs are the stores that notification works with.
var Needs = process.Needs{Postgres: true, Kafka: true}

// Run serves until ctx ends.
func Run(ctx context.Context, env process.Env) error {
	s, err := owner.Open(ctx, env, nil)
	if err != nil {
		return err
	}
	s.React("chat", "chat-events", consume.FromTime(time.Now().Add(-newsWithin)), raise)
	return s.Run(ctx)
}

// newsWithin is how old an event may be about which somebody is notified when this service has not consumed the topic
// before. It is longer than services of a new installation take to start, one after the other, and short enough that
// where chat is older nobody is notified of events that are old.
const newsWithin = time.Hour

// raise appends what the rules raise to the recipients' streams.
func raise(e envelope.Event, event proto.Message) (effects []consume.Effect) {
	about := rule.About{ID: e.ID, Stream: e.Stream, Version: e.Version, Actor: e.Actor, Event: event}
	for _, r := range rule.Raise(about) {
		effects = append(effects, consume.Effect{Stream: catalog.Address("notifications", r.GetRecipientId()), Events: []proto.Message{r}})
	}
	return effects
}

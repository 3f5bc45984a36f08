// Package notification is the service that listens to everything and tells people what they should know of.
package notification

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/notification/rule"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/owner"
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
	s.React("chat", "chat-events", raise)
	return s.Run(ctx)
}

// raise appends what the rules raise to the recipients' streams.
func raise(e envelope.Event, event proto.Message) (appends []eventlog.Append) {
	about := rule.About{ID: e.ID, Stream: e.Stream, Version: e.Version, Actor: e.Actor, Event: event}
	for _, r := range rule.Raise(about) {
		appends = append(appends, eventlog.Append{Stream: catalog.Address("notifications", r.GetRecipientId()), Actor: e.Actor,
			Events: []proto.Message{r}})
	}
	return appends
}

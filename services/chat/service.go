// Package chat is the service that owns conversations: their members, and messages with the reactions to them.
package chat

import (
	"context"

	"github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1/chatv1connect"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/services/chat/marker"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/reaction"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/process"
)

// Needs are the stores that chat uses.
var Needs = process.Needs{Postgres: true, Kafka: true}

// Run serves until ctx ends.
func Run(ctx context.Context, env process.Env) error {
	s, err := owner.Open(ctx, env, store.Migrations())
	if err != nil {
		return err
	}
	s.HandleCommands("conversation", func(stream string) owner.State { return conversation.New(stream) })
	s.HandleCommands("reactions", func(stream string) owner.State { return reaction.New(stream) })
	s.HandleCommands("marker", func(stream string) owner.State { return marker.New(stream) })
	s.Log.BoundRooms("conversation", env.Config.MaxConversations)
	s.Project(store.DeclareConversations(), store.DeclareSearch())
	queries := query.New(s.Log, store.New(env.Stores.Postgres))
	s.Serve(chatv1connect.NewChatServiceHandler(queries, s.QueryOptions(query.Projections)))
	s.Serve(chatv1connect.NewReactionServiceHandler(queries, s.QueryOptions(query.Projections)))
	s.Serve(chatv1connect.NewMarkerServiceHandler(queries, s.QueryOptions(query.Projections)))
	s.Serve(chatv1connect.NewSearchServiceHandler(queries, s.QueryOptions(query.Projections)))
	return s.Run(ctx)
}

// Package query serves queries about conversations. Users can list the conversations of which they are
// members, and the members of each. They can read the messages of the conversations of which they are or were a member.
// In a conversation whose history begins with joining, they can read only the messages that were sent while they were
// members. In all other conversations they can read the whole history, up to the moment when they left.
package query

import (
	"context"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// limits bound the number of conversations, messages or members in a page.
var limits = page.Limits{Default: 50, Max: 200}

// Projections declares which projections each query reads.
var Projections = consistency.Projections{
	"chat.conversations": store.ProjectionName,
	"chat.edits":         store.ProjectionName,
	"chat.history":       store.ProjectionName,
	"chat.markers":       store.ProjectionName,
	"chat.members":       store.ProjectionName,
	"chat.pins":          store.ProjectionName,
	"chat.reactions":     store.ProjectionName,
	"chat.search":        consistency.All(store.ProjectionName, store.SearchName),
	"chat.unread":        store.ProjectionName,
}

// Server answers the queries of ChatService, MarkerService, ReactionService and SearchService.
type Server struct {
	log   *eventlog.Log
	store *store.Store
}

// New returns a Server that reads from a store and checks access with the log.
func New(log *eventlog.Log, s *store.Store) *Server { return &Server{log, s} }

// Conversations returns a page of the conversations of the calling user, those with the newest events first.
func (s *Server) Conversations(ctx context.Context, r *connect.Request[chatv1.ConversationsRequest]) (
	*connect.Response[chatv1.ConversationsResponse], error) {
	var below catalog.Position
	limit, err := limits.Read(r.Msg.Limit, r.Msg.GetAfter(), &below)
	if err != nil {
		return nil, err
	}
	all, next, err := s.store.Conversations(ctx, rpc.Actor(ctx), below, limit)
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	return connect.NewResponse(&chatv1.ConversationsResponse{Conversations: all, Next: page.Cursor(next)}), nil
}

// Members returns a page of the members of a conversation. Users who are not members now are refused.
func (s *Server) Members(ctx context.Context, r *connect.Request[chatv1.MembersRequest]) (
	*connect.Response[chatv1.MembersResponse], error) {
	var after store.JoinOrder
	limit, err := limits.Read(r.Msg.Limit, r.Msg.GetAfter(), &after.Version, &after.Index)
	if err != nil {
		return nil, err
	}
	m, err := asMember(ctx, s, r.Msg.GetConversationId(),
		func(ctx context.Context, id string) (m store.Members, version catalog.Version, err error) {
			m, err = s.store.Members(ctx, id, after, limit)
			return m, m.Version, err
		})
	if err != nil {
		return nil, err
	}
	var users []string
	for _, member := range m.Members {
		users = append(users, member.UserId)
	}
	return connect.NewResponse(&chatv1.MembersResponse{UserIds: users, Members: m.Members, MemberCount: m.Count,
		Version: int64(m.Version), Next: page.Cursor(m.Next.Version, m.Next.Index)}), nil
}

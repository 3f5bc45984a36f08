package query

import (
	"context"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/marker"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Markers returns how far the members of a conversation have read it, and what is unread for the calling user. Users
// who are not members now are refused.
func (s *Server) Markers(ctx context.Context, r *connect.Request[chatv1.MarkersRequest]) (
	*connect.Response[chatv1.MarkersResponse], error) {
	answer, err := asMember(ctx, s, r.Msg.GetConversationId(),
		func(ctx context.Context, id string) (*chatv1.MarkersResponse, catalog.Version, error) {
			m, err := s.store.Markers(ctx, id, rpc.Actor(ctx), marker.MaxShown)
			return m, catalog.Version(m.GetVersion()), err
		})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// Unread returns what is unread in all conversations of the calling user together.
func (s *Server) Unread(ctx context.Context, _ *connect.Request[chatv1.UnreadRequest]) (
	*connect.Response[chatv1.UnreadResponse], error) {
	answer, err := s.store.Unread(ctx, rpc.Actor(ctx))
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	return connect.NewResponse(answer), nil
}

package query

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Reactions returns a page of the users who have reacted to a message. Users who are not members now are refused, and
// so are members who cannot read the message.
func (s *Server) Reactions(ctx context.Context, r *connect.Request[chatv1.ReactionsRequest]) (
	*connect.Response[chatv1.ReactionsResponse], error) {
	var after catalog.Version
	limit, err := limits.Read(r.Msg.Limit, r.Msg.GetAfter(), &after)
	if err != nil {
		return nil, err
	}
	all, version, intervals, err := readThenIntervals(ctx, s, r.Msg.GetConversationId(), rpc.Actor(ctx), true,
		func(ctx context.Context, id string) (store.Reactions, catalog.Version, error) {
			all, err := s.store.Reactions(ctx, id, r.Msg.GetMessageId(), r.Msg.GetEmoji(), after, limit)
			return all, all.Conversation, err
		})
	if err != nil {
		return nil, err
	}
	canRead := func(of store.Range) bool { return all.Message >= of.From && all.Message <= of.To }
	readable := readableRanges(intervals, all.Settings.FromJoining, version)
	if !slices.ContainsFunc(readable.ranges, canRead) {
		return nil, errNoMessage
	}
	return connect.NewResponse(&chatv1.ReactionsResponse{Reactions: all.Reactions, Next: page.Cursor(all.Next),
		Version: int64(all.Version)}), nil
}

var errNoMessage = refusal.New(refusal.NotFound, "there is no such message in this conversation, or you cannot read it")

// addReactions adds the reactions to messages that a member of a conversation reads.
func (s *Server) addReactions(ctx context.Context, id string, messages []*chatv1.Message) error {
	if err := s.store.AddReactions(ctx, id, rpc.Actor(ctx), messages); err != nil {
		return eventlog.Unavailable(err)
	}
	return nil
}

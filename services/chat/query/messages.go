package query

import (
	"context"
	"math"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// History returns a page of one conversation's messages.
func (s *Server) History(ctx context.Context, r *connect.Request[chatv1.HistoryRequest]) (
	*connect.Response[chatv1.HistoryResponse], error) {
	limit, err := limits.Limit("limit", r.Msg.Limit)
	if err != nil {
		return nil, err
	}
	if r.Msg.Before != nil && r.Msg.After != nil {
		return nil, refusal.NewField("before", "is sent together with after; send only one of them")
	}
	wanted := store.Page{ThreadID: r.Msg.GetThreadId(), After: catalog.Version(r.Msg.GetAfter()), Before: math.MaxInt64,
		FromAfter: r.Msg.After != nil, Limit: limit}
	if r.Msg.Before != nil {
		wanted.Before = catalog.Version(r.Msg.GetBefore())
	}
	id := r.Msg.GetConversationId()
	readable, err := s.readableBy(ctx, id, rpc.Actor(ctx), false)
	if err != nil {
		return nil, err
	}
	wanted.Ranges, wanted.Member = readable.ranges, readable.member
	messages, more, err := s.store.Messages(ctx, id, wanted)
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	if readable.member {
		if err := s.addReactions(ctx, id, messages); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&chatv1.HistoryResponse{Messages: messages, More: more, Version: int64(readable.version)}), nil
}

// Edits returns a page of the texts that a message has had.
func (s *Server) Edits(ctx context.Context, r *connect.Request[chatv1.EditsRequest]) (
	*connect.Response[chatv1.EditsResponse], error) {
	var after catalog.Version
	limit, err := limits.Read(r.Msg.Limit, r.Msg.GetAfter(), &after)
	if err != nil {
		return nil, err
	}
	id := r.Msg.GetConversationId()
	readable, err := s.readableBy(ctx, id, rpc.Actor(ctx), false)
	if err != nil {
		return nil, err
	}
	edits, next, exists, err := s.store.Edits(ctx, id, r.Msg.GetMessageId(), readable.ranges, after, limit)
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	if !exists {
		return nil, errNoMessage
	}
	return connect.NewResponse(&chatv1.EditsResponse{Edits: edits, Next: page.Cursor(next)}), nil
}

// Pins returns a page of the pinned messages of a conversation. Users who are not members now are refused.
func (s *Server) Pins(ctx context.Context, r *connect.Request[chatv1.PinsRequest]) (
	*connect.Response[chatv1.PinsResponse], error) {
	var below catalog.Version
	limit, err := limits.Read(r.Msg.Limit, r.Msg.GetAfter(), &below)
	if err != nil {
		return nil, err
	}
	id := r.Msg.GetConversationId()
	readable, err := s.readableBy(ctx, id, rpc.Actor(ctx), true)
	if err != nil {
		return nil, err
	}
	if below == 0 {
		below = readable.version + 1
	}
	pins, next, err := s.store.Pins(ctx, id, readable.ranges, below, limit)
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	var messages []*chatv1.Message
	for _, pin := range pins {
		messages = append(messages, pin.Message)
	}
	if err := s.addReactions(ctx, id, messages); err != nil {
		return nil, err
	}
	return connect.NewResponse(&chatv1.PinsResponse{Pins: pins, Next: page.Cursor(next), Version: int64(readable.version)}), nil
}

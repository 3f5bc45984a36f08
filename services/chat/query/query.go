// Package query answers what is asked about conversations. Whoever asks sees what they may: their own conversations, and
// of each the messages of the times when they were in it.
package query

import (
	"context"
	"encoding/base64"
	"math"
	"strconv"
	"time"

	"connectrpc.com/connect"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/rpc"
)

const (
	usualPage   = 50
	largestPage = 200
	// patience is how long an answer waits for the projection to show what was committed before it was asked for.
	patience = 3 * time.Second
)

// Server answers the queries of ChatService.
type Server struct {
	log   *eventlog.Log
	store *store.Store
}

// New answers from a store, with the log to say who may see what.
func New(log *eventlog.Log, s *store.Store) *Server { return &Server{log, s} }

// Conversations lists those that the asking user is in.
func (s *Server) Conversations(ctx context.Context, r *connect.Request[chatv1.ConversationsRequest]) (
	*connect.Response[chatv1.ConversationsResponse], error) {
	limit, err := pageSize(r.Msg.GetLimit())
	if err != nil {
		return nil, err
	}
	below, err := readCursor(r.Msg.GetAfter())
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, rpc.Position(ctx)); err != nil {
		return nil, err
	}
	all, next, err := s.store.Conversations(ctx, rpc.Actor(ctx), below, limit)
	if err != nil {
		return nil, eventlog.Away(err)
	}
	answer := &chatv1.ConversationsResponse{Conversations: all}
	if next > 0 {
		answer.Next = cursor(next)
	}
	return connect.NewResponse(answer), nil
}

// History reads a page of one conversation's messages.
func (s *Server) History(ctx context.Context, r *connect.Request[chatv1.HistoryRequest]) (
	*connect.Response[chatv1.HistoryResponse], error) {
	limit, err := pageSize(r.Msg.GetLimit())
	if err != nil {
		return nil, err
	}
	before, after := r.Msg.GetBefore(), r.Msg.GetAfter()
	if before < 0 || after < 0 || before > 0 && after > 0 {
		return nil, refusal.New(refusal.InvalidField, "before and after are versions, and only one of them goes with a query")
	}
	if before == 0 {
		before = math.MaxInt64
	}
	id := r.Msg.GetConversationId()
	a, err := s.access(ctx, id, rpc.Actor(ctx))
	if err != nil {
		return nil, err
	}
	// One more than asked for tells whether there are more.
	messages, err := s.store.Messages(ctx, id, after, before, a.ranges, after > 0, limit+1)
	if err != nil {
		return nil, eventlog.Away(err)
	}
	answer := &chatv1.HistoryResponse{Version: a.version}
	if answer.More = len(messages) > limit; answer.More {
		if after > 0 {
			messages = messages[:limit]
		} else {
			messages = messages[1:]
		}
	}
	answer.Messages = messages
	return connect.NewResponse(answer), nil
}

// access is what somebody may read of a conversation, as of a version of it.
type access struct {
	version int64
	ranges  []store.Range
}

// access asks first how far the projection is, and then the log when the user was in the conversation. So of everything
// up to that version it is known whether they were there, also while they are being removed.
func (s *Server) access(ctx context.Context, id, user string) (access, error) {
	for position := rpc.Position(ctx); ; {
		if err := s.wait(ctx, position); err != nil {
			return access{}, err
		}
		version, fromJoining, err := s.store.Conversation(ctx, id)
		if err != nil {
			return access{}, eventlog.Away(err)
		}
		stretches, err := s.log.Stretches(ctx, "conversation:"+id, user)
		if err != nil {
			return access{}, err
		}
		if len(stretches) == 0 {
			return access{}, refusal.New(refusal.NotAMember, "you are no member of this conversation")
		}
		last := stretches[len(stretches)-1]
		if last.OpenedVersion <= version {
			return readable(stretches, fromJoining, version), nil
		}
		position = last.OpenedPosition // what the log knows of the membership, the projection has to know as well
	}
}

// readable is what somebody may read, up to a version, who was in a conversation at these times: all up to when they
// left, or, where the conversation says so, only what was said while they were in it.
func readable(stretches []eventlog.Stretch, fromJoining bool, version int64) access {
	var a access
	for _, s := range stretches {
		r := store.Range{From: s.OpenedVersion, To: version}
		if s.ClosedVersion > 0 {
			r.To = min(version, s.ClosedVersion)
		}
		a.ranges, a.version = append(a.ranges, r), r.To
	}
	if !fromJoining {
		a.ranges = []store.Range{{From: 1, To: a.version}}
	}
	return a
}

func (s *Server) wait(ctx context.Context, position int64) error {
	if position == 0 {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.log.WaitFor(patient, store.ProjectionName, position); err != nil {
		if patient.Err() != nil && ctx.Err() == nil {
			return refusal.New(refusal.Unavailable, "what was written last cannot be read yet, ask again")
		}
		return err
	}
	return nil
}

func pageSize(asked int32) (int, error) {
	switch {
	case asked == 0:
		return usualPage, nil
	case asked < 0 || asked > largestPage:
		return 0, refusal.New(refusal.InvalidField, "limit is from 1 to %d", largestPage)
	}
	return int(asked), nil
}

func cursor(position int64) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(position, 36)))
}

func readCursor(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		var position int64
		if position, err = strconv.ParseInt(string(raw), 36, 64); err == nil && position > 0 {
			return position, nil
		}
	}
	return 0, refusal.New(refusal.InvalidField, "after is no mark of a page: it is what next said in the page before")
}

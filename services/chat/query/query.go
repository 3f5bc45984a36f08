// Package query answers queries about conversations. Users see what they may: their own conversations, and of each the
// messages of the times when they were in it.
package query

import (
	"context"
	"encoding/base64"
	"math"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/rpc"
)

const (
	usualPage = 50
	maxPage   = 200
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
	limit, err := pageSize(r.Msg.Limit)
	if err != nil {
		return nil, err
	}
	below, err := readCursor(r.Msg.GetAfter(), 1)
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, rpc.Position(ctx)); err != nil {
		return nil, err
	}
	all, next, err := s.store.Conversations(ctx, rpc.Actor(ctx), below[0], limit)
	if err != nil {
		return nil, eventlog.Away(err)
	}
	answer := &chatv1.ConversationsResponse{Conversations: all}
	if next > 0 {
		answer.Next = cursor(next)
	}
	return connect.NewResponse(answer), nil
}

// Members lists who is in a conversation, to those who are in it themselves.
func (s *Server) Members(ctx context.Context, r *connect.Request[chatv1.MembersRequest]) (
	*connect.Response[chatv1.MembersResponse], error) {
	limit, err := pageSize(r.Msg.Limit)
	if err != nil {
		return nil, err
	}
	after, err := readCursor(r.Msg.GetAfter(), 2)
	if err != nil {
		return nil, err
	}
	id, user := r.Msg.GetConversationId(), rpc.Actor(ctx)
	for position := rpc.Position(ctx); ; {
		if err := s.wait(ctx, position); err != nil {
			return nil, err
		}
		m, err := s.store.Members(ctx, id, store.Seat{Version: after[0], Index: int32(after[1])}, limit)
		if err != nil {
			return nil, eventlog.Away(err)
		}
		// The log is asked after the rows were read: whoever is a member now may see who was one at that moment.
		stretches, err := s.log.Stretches(ctx, "conversation:"+id, user)
		if err != nil {
			return nil, err
		}
		if len(stretches) == 0 || stretches[len(stretches)-1].ClosedVersion > 0 {
			return nil, errNotAMember
		}
		last := stretches[len(stretches)-1]
		if last.OpenedVersion > m.Version {
			position = last.OpenedPosition
			continue
		}
		answer := &chatv1.MembersResponse{UserIds: m.Users, MemberCount: m.Count, Version: m.Version}
		if m.Next != (store.Seat{}) {
			answer.Next = cursor(m.Next.Version, int64(m.Next.Index))
		}
		return connect.NewResponse(answer), nil
	}
}

// History reads a page of one conversation's messages.
func (s *Server) History(ctx context.Context, r *connect.Request[chatv1.HistoryRequest]) (
	*connect.Response[chatv1.HistoryResponse], error) {
	limit, err := pageSize(r.Msg.Limit)
	if err != nil {
		return nil, err
	}
	if r.Msg.GetBefore() < 0 || r.Msg.GetAfter() < 0 || r.Msg.Before != nil && r.Msg.After != nil {
		return nil, refusal.New(refusal.InvalidField, "before and after are versions from 0 on; send only one of them")
	}
	page := store.Page{After: r.Msg.GetAfter(), Before: math.MaxInt64, Up: r.Msg.After != nil, Limit: limit}
	if r.Msg.Before != nil {
		page.Before = r.Msg.GetBefore()
	}
	id := r.Msg.GetConversationId()
	a, err := s.access(ctx, id, rpc.Actor(ctx))
	if err != nil {
		return nil, err
	}
	page.Ranges = a.ranges
	messages, more, err := s.store.Messages(ctx, id, page)
	if err != nil {
		return nil, eventlog.Away(err)
	}
	return connect.NewResponse(&chatv1.HistoryResponse{Messages: messages, More: more, Version: a.version}), nil
}

// Whether a conversation exists is not told to those who are not in it.
var errNotAMember = refusal.New(refusal.NotAMember, "you are not a member of this conversation")

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
			return access{}, errNotAMember
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

// wait returns when the projection shows everything up to a position of the log; rpc.Now is the newest one.
func (s *Server) wait(ctx context.Context, position int64) (err error) {
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if position == rpc.Now {
		position, err = s.log.Head(patient)
	}
	if err == nil {
		err = s.log.WaitFor(patient, store.ProjectionName, position)
	}
	if err != nil {
		if patient.Err() != nil && ctx.Err() == nil {
			return refusal.New(refusal.Unavailable, "what was written last cannot be read yet, ask again")
		}
		return err
	}
	return nil
}

func pageSize(asked *int32) (int, error) {
	switch {
	case asked == nil:
		return usualPage, nil
	case *asked < 1 || *asked > maxPage:
		return 0, refusal.New(refusal.InvalidField, "limit is from 1 to %d", maxPage)
	}
	return int(*asked), nil
}

// cursor makes the mark of a page's end, which readCursor reads.
func cursor(numbers ...int64) string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatInt(n, 36)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(texts, ".")))
}

// readCursor reads so many numbers; of an empty cursor, which is before the first page, all are 0.
func readCursor(s string, count int) ([]int64, error) {
	numbers := make([]int64, count)
	if s == "" {
		return numbers, nil
	}
	invalid := refusal.New(refusal.InvalidField, "after is not a cursor; send what next of the page before contains")
	raw, err := base64.RawURLEncoding.DecodeString(s)
	texts := strings.Split(string(raw), ".")
	if err != nil || len(texts) != count {
		return nil, invalid
	}
	for i, text := range texts {
		// A seat is two numbers, the second of 32 bits; a position is one, and never 0.
		bits := 64
		if i > 0 {
			bits = 32
		}
		if numbers[i], err = strconv.ParseInt(text, 36, bits); err != nil || numbers[i] < 0 || numbers[0] == 0 {
			return nil, invalid
		}
	}
	return numbers, nil
}

// Package query serves queries about conversations. Users see only their own conversations, and of each only the
// messages from the times when they were members, unless the conversation shows its whole history.
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
	// patience is how long a query waits until the projection contains what was committed before it.
	patience = 3 * time.Second
)

// Server answers the queries of ChatService.
type Server struct {
	log   *eventlog.Log
	store *store.Store
}

// New returns a Server that reads from a store and checks access with the log.
func New(log *eventlog.Log, s *store.Store) *Server { return &Server{log, s} }

// Conversations returns a page of the conversations of the calling user, the newest first.
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
		return nil, eventlog.Unavailable(err)
	}
	answer := &chatv1.ConversationsResponse{Conversations: all}
	if next > 0 {
		answer.Next = cursor(next)
	}
	return connect.NewResponse(answer), nil
}

// Members returns a page of the members of a conversation. Only members may call it.
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
			return nil, eventlog.Unavailable(err)
		}
		// The memberships are read after the rows: a user who is a member now may see the members of that earlier
		// moment.
		intervals, err := s.log.MembershipIntervals(ctx, "conversation:"+id, user)
		if err != nil {
			return nil, err
		}
		if len(intervals) == 0 || intervals[len(intervals)-1].UntilVersion > 0 {
			return nil, errNotAMember
		}
		last := intervals[len(intervals)-1]
		if last.FromVersion > m.Version {
			position = last.From
			continue
		}
		answer := &chatv1.MembersResponse{UserIds: m.Users, MemberCount: m.Count, Version: m.Version}
		if m.Next != (store.Seat{}) {
			answer.Next = cursor(m.Next.Version, int64(m.Next.Index))
		}
		return connect.NewResponse(answer), nil
	}
}

// History returns a page of one conversation's messages.
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
		return nil, eventlog.Unavailable(err)
	}
	return connect.NewResponse(&chatv1.HistoryResponse{Messages: messages, More: more, Version: a.version}), nil
}

// errNotAMember does not reveal whether the conversation exists.
var errNotAMember = refusal.New(refusal.NotAMember, "you are not a member of this conversation")

// access describes the versions of a conversation that a user may read, as of one version of it.
type access struct {
	version int64
	ranges  []store.Range
}

// access reads first the version that the projection has reached, and then the memberships from the log. So the
// memberships are known for everything up to that version, even while the user is being removed. The user's own
// memberships may be newer than the projection; then it waits until the projection has reached them as well.
func (s *Server) access(ctx context.Context, id, user string) (access, error) {
	for position := rpc.Position(ctx); ; {
		if err := s.wait(ctx, position); err != nil {
			return access{}, err
		}
		version, fromJoining, err := s.store.Conversation(ctx, id)
		if err != nil {
			return access{}, eventlog.Unavailable(err)
		}
		intervals, err := s.log.MembershipIntervals(ctx, "conversation:"+id, user)
		if err != nil {
			return access{}, err
		}
		if len(intervals) == 0 {
			return access{}, errNotAMember
		}
		last := intervals[len(intervals)-1]
		if last.FromVersion <= version {
			return readableRanges(intervals, fromJoining, version), nil
		}
		position = last.From // the projection has to reach the event that let the user in
	}
}

// readableRanges returns the versions, up to a given one, that a user may read who was a member during the intervals:
// everything up to the end of the last interval or, if history begins with joining, only the messages within the
// intervals.
func readableRanges(intervals []eventlog.MembershipInterval, fromJoining bool, version int64) access {
	var a access
	for _, s := range intervals {
		r := store.Range{From: s.FromVersion, To: version}
		if s.UntilVersion > 0 {
			r.To = min(version, s.UntilVersion)
		}
		a.ranges, a.version = append(a.ranges, r), r.To
	}
	if !fromJoining {
		a.ranges = []store.Range{{From: 1, To: a.version}}
	}
	return a
}

// wait returns when the projection has reached a position of the log. rpc.Now stands for the newest position.
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
			return refusal.New(refusal.Unavailable, "the newest changes cannot be read yet; try again")
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

// cursor encodes the end of a page, which readCursor decodes.
func cursor(numbers ...int64) string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatInt(n, 36)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(texts, ".")))
}

// readCursor decodes a cursor of count numbers. An empty cursor stands before the first page; its numbers are 0.
func readCursor(s string, count int) ([]int64, error) {
	numbers := make([]int64, count)
	if s == "" {
		return numbers, nil
	}
	invalid := refusal.New(refusal.InvalidField, "invalid cursor in after; use next from the previous page")
	raw, err := base64.RawURLEncoding.DecodeString(s)
	texts := strings.Split(string(raw), ".")
	if err != nil || len(texts) != count {
		return nil, invalid
	}
	for i, text := range texts {
		// A seat consists of two numbers, the second of 32 bits; a position is one number and never 0.
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

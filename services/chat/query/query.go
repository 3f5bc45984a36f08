// Package query serves queries about conversations. Users can list the conversations of which they are
// members, and the members of each. They can read the messages of the conversations of which they are or were a member.
// In a conversation whose history begins with joining, they can read only the messages that were sent while they were
// members. In all other conversations they can read the whole history, up to the moment when they left.
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
	"github.com/edumatrix/interlinked/shared/eventlog/membership"
	"github.com/edumatrix/interlinked/shared/interval"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// limits bound the number of conversations, messages or members in a page.
var limits = page.Limits{Default: 50, Max: 200}

// Projections declares which projection each query reads.
var Projections = consistency.Projections{
	"chat.conversations": store.ProjectionName,
	"chat.history":       store.ProjectionName,
	"chat.members":       store.ProjectionName,
}

// Server answers the queries of ChatService.
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
	return connect.NewResponse(&chatv1.MembersResponse{UserIds: m.Users, MemberCount: m.Count, Version: int64(m.Version),
		Next: page.Cursor(m.Next.Version, m.Next.Index)}), nil
}

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
	wanted := store.Page{After: catalog.Version(r.Msg.GetAfter()), Before: math.MaxInt64, FromAfter: r.Msg.After != nil, Limit: limit}
	if r.Msg.Before != nil {
		wanted.Before = catalog.Version(r.Msg.GetBefore())
	}
	id := r.Msg.GetConversationId()
	readable, err := s.readableBy(ctx, id, rpc.Actor(ctx))
	if err != nil {
		return nil, err
	}
	wanted.Ranges = readable.ranges
	messages, more, err := s.store.Messages(ctx, id, wanted)
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	return connect.NewResponse(&chatv1.HistoryResponse{Messages: messages, More: more, Version: int64(readable.version)}), nil
}

// errNotAMember does not reveal whether the conversation exists.
var errNotAMember = refusal.New(refusal.NotAMember, "you are not a member of this conversation")

// readFunc reads from the rows of a conversation. It also returns the version of the conversation as of which the rows
// were read.
type readFunc[T any] func(ctx context.Context, id string) (row T, version catalog.Version, err error)

// asMember calls the function read, and then checks that the calling user is a member now. Because it reads the
// memberships after the rows, a user who was just removed gets nothing. A member may get rows that are slightly out of
// date.
func asMember[T any](ctx context.Context, s *Server, id string, read readFunc[T]) (T, error) {
	row, _, _, err := readThenIntervals(ctx, s, id, rpc.Actor(ctx), true, read)
	return row, err
}

// readable describes the versions of a conversation that a user may read.
type readable struct {
	version catalog.Version // the newest readable version
	ranges  []store.Range
}

// readableBy returns the versions of a conversation that a user may read. It first reads the conversation's version in
// the projection, and then the memberships in the log. So the memberships are complete up to that version, even while
// the user is being removed. A user who has left can still read the versions that they could read when they left.
func (s *Server) readableBy(ctx context.Context, id, user string) (readable, error) {
	settings, version, intervals, err := readThenIntervals(ctx, s, id, user, false, s.store.Settings)
	if err != nil {
		return readable{}, err
	}
	return readableRanges(intervals, settings.FromJoining, version), nil
}

// readThenIntervals calls the function read, and then reads the intervals in which a user was a member. It refuses
// users who were never a member. If memberNow is true, it also refuses users who have left. If the user's last interval
// begins after the version that the function read returned, the projection lags. Then readThenIntervals waits until the
// projection has reached the beginning of that interval, and calls the function again.
func readThenIntervals[T any](ctx context.Context, s *Server, id, user string, memberNow bool, read readFunc[T]) (
	row T, version catalog.Version, intervals []interval.Interval, err error) {
	var none T
	for {
		row, version, err := read(ctx, id)
		if err != nil {
			return none, 0, nil, eventlog.Unavailable(err)
		}
		intervals, err := membership.Intervals(ctx, s.log, catalog.Address("conversation", id), user)
		if err != nil {
			return none, 0, nil, err
		}
		if len(intervals) == 0 {
			return none, 0, nil, errNotAMember
		}
		last := intervals[len(intervals)-1]
		if memberNow && last.UntilVersion > 0 {
			return none, 0, nil, errNotAMember
		}
		if last.FromVersion <= version {
			return row, version, intervals, nil
		}
		if err := consistency.WaitFor(ctx, last.From); err != nil {
			return none, 0, nil, err
		}
	}
}

// readableRanges returns the versions, up to a given one, that a user who was a member during the intervals may read.
// If fromJoining is true, these are only the versions within the intervals. Otherwise these are all versions up to the
// end of the last interval.
func readableRanges(intervals []interval.Interval, fromJoining bool, version catalog.Version) readable {
	var all readable
	for _, i := range intervals {
		r := store.Range{From: i.FromVersion, To: version}
		if i.UntilVersion > 0 { // 0: the user is still a member
			r.To = min(version, i.UntilVersion)
		}
		// The intervals ascend, so the end of the last one is the newest version that the user may read.
		all.ranges, all.version = append(all.ranges, r), r.To
	}
	if !fromJoining {
		all.ranges = []store.Range{{From: 1, To: all.version}}
	}
	return all
}

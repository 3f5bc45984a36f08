package query

import (
	"context"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/membership"
	"github.com/edumatrix/interlinked/shared/interval"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/rpc"
)

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
	member  bool // whether the user is a member now
}

// readableBy returns the versions of a conversation that a user may read. It first reads the conversation's version in
// the projection, and then the memberships in the log. So the memberships are complete up to that version, even while
// the user is being removed. A user who has left can still read the versions that they could read when they left; if
// the parameter memberNow is true, such a user is refused.
func (s *Server) readableBy(ctx context.Context, id, user string, memberNow bool) (readable, error) {
	settings, version, intervals, err := readThenIntervals(ctx, s, id, user, memberNow, s.store.Settings)
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
		all.ranges, all.version, all.member = append(all.ranges, r), r.To, i.UntilVersion == 0
	}
	if !fromJoining {
		all.ranges = []store.Range{{From: 1, To: all.version}}
	}
	return all
}

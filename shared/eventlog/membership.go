package eventlog

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// MembershipInterval is a time during which a user was in a room, from the event that let them in to the event that let
// them out, both included.
type MembershipInterval struct {
	Room string
	// From and Until are the positions of these events. Until is 0 while the user is in the room.
	From, Until int64
	// FromVersion and UntilVersion are their versions in the stream of the room. Log.MembershipIntervals sets them;
	// Log.Resume, which does not need them, leaves them 0.
	FromVersion, UntilVersion int64
}

// Rooms returns the rooms that each user is in, sorted by name, and the head of the log as of which they were read.
func (l *Log) Rooms(ctx context.Context, users []string) (rooms map[string][]string, asOf Point, err error) {
	fail := func(err error) (map[string][]string, Point, error) {
		return nil, Point{}, fmt.Errorf("read the rooms of %d users: %w", len(users), Unavailable(err))
	}
	found, err := l.o.Pool.Query(ctx, l.sql.rooms, planned, users)
	if err != nil {
		return fail(err)
	}
	rooms = map[string][]string{}
	var member string
	var of []string
	var head Point
	_, err = pgx.ForEachRow(found, []any{&member, &of, &head.Position, &head.Incarnation}, func() error {
		if member != "" {
			slices.Sort(of)
			rooms[member] = of
		} else {
			asOf = head
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return rooms, asOf, nil
}

// MembershipIntervals returns the times during which a user was in a room, the oldest first.
func (l *Log) MembershipIntervals(ctx context.Context, room, user string) ([]MembershipInterval, error) {
	found, err := l.o.Pool.Query(ctx, l.sql.intervals, planned, room, user)
	if err == nil {
		var all []MembershipInterval
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[MembershipInterval]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read when %s was in %s: %w", user, room, Unavailable(err))
}

package eventlog

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Stretch is a time during which somebody was in a room: from the event that opened it to the one that closed it, both
// included. Closed fields are 0 while it is open.
type Stretch struct {
	OpenedVersion  int64
	OpenedPosition int64
	ClosedVersion  int64
	ClosedPosition int64
}

// Rooms lists the rooms that users are in, in order, and the head of the log as of which that was read.
func (l *Log) Rooms(ctx context.Context, users []string) (rooms map[string][]string, asOf Point, err error) {
	fail := func(err error) (map[string][]string, Point, error) {
		return nil, Point{}, fmt.Errorf("read the rooms of %d users: %w", len(users), Away(err))
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

// Stretches lists when a user was in a room, ascending.
func (l *Log) Stretches(ctx context.Context, room, user string) ([]Stretch, error) {
	found, err := l.o.Pool.Query(ctx, l.sql.stretches, planned, room, user)
	if err == nil {
		var all []Stretch
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[Stretch]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read when %s was in %s: %w", user, room, Away(err))
}

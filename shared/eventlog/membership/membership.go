// Package membership reads from a log the rooms that users are in and were in, and the events that users have missed in
// them. Commits write memberships, because the log checks some commands against them; this package only reads them.
package membership

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/interval"
)

// planned makes the server plan a statement for its arguments each time it runs. A cached plan would be used again for
// other arguments, and after tables have grown.
const planned = pgx.QueryExecModeCacheDescribe

const (
	// sqlRooms is a single statement, so it sees a single state of the log. For a user with thousands of rooms, one row
	// for the user takes a third of the time that one row for each room takes. The statement does not sort the rooms,
	// because sorting thousands of texts takes the server longer than reading them; usually they come in the order of
	// the index.
	sqlRooms = `SELECT m.member, array_agg(m.room), 0 AS position, '' AS incarnation FROM owner.memberships m
WHERE m.member = ANY ($1::text[]) AND m.closed_position IS NULL GROUP BY m.member
UNION ALL (SELECT '', NULL, greatest(i.floor, (SELECT max(position) FROM owner.events)), i.id
  FROM owner.incarnations i ORDER BY i.number DESC LIMIT 1)`
	sqlIntervals = `SELECT room, opened_position, coalesce(closed_position, 0), opened_version, coalesce(closed_version, 0)
FROM owner.memberships WHERE room = $1 AND member = $2 ORDER BY opened_position`
)

// Rooms returns the rooms that each user is in, sorted by name, and the head of the log as of which they were read.
func Rooms(ctx context.Context, l *eventlog.Log, users []string) (rooms map[string][]string, asOf eventlog.Point, err error) {
	fail := func(err error) (map[string][]string, eventlog.Point, error) {
		return nil, eventlog.Point{}, fmt.Errorf("read the rooms of %d users: %w", len(users), eventlog.Unavailable(err))
	}
	found, err := l.Options().Pool.Query(ctx, l.SQL(sqlRooms), planned, users)
	if err != nil {
		return fail(err)
	}
	rooms = map[string][]string{}
	var member string
	var of []string
	var head eventlog.Point
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

// Intervals returns the membership intervals of a user in a room, the oldest first.
func Intervals(ctx context.Context, l *eventlog.Log, room, user string) ([]interval.Interval, error) {
	found, err := l.Options().Pool.Query(ctx, l.SQL(sqlIntervals), planned, room, user)
	if err == nil {
		var all []interval.Interval
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[interval.Interval]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read when %s was in %s: %w", user, room, eventlog.Unavailable(err))
}

// Package membership reads from a log the rooms that users are in and were in, and the events that users have missed in
// these rooms. The commits of package eventlog write the memberships, because the log checks some commands against
// them. This package reads the memberships, and stores the rooms of users with many rooms in lists.
package membership

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/interval"
)

// planned makes the server plan a statement for its arguments each time it runs. A cached plan would be used again for
// other arguments, and after tables have grown.
const planned = pgx.QueryExecModeCacheDescribe

const (
	// sqlRooms is a single statement, so it sees a single state of the log. It reads each user's room list, if there is
	// one, and the memberships that were opened or closed above the list's position. For a user with thousands of
	// rooms, one row for the user takes a third of the time that one row for each room takes. The statement does not
	// sort the rooms, because sorting thousands of texts takes the server longer than reading them.
	sqlRooms = `SELECT u.member, l.rooms,
  (SELECT array_agg(o.room) FROM owner.memberships o WHERE o.member = u.member AND o.closed_position IS NULL
    AND o.opened_position > coalesce(l.position, 0)),
  (SELECT array_agg(c.room) FROM owner.memberships c WHERE c.member = u.member AND c.closed_position > l.position),
  0 AS position, '' AS incarnation
FROM unnest($1::text[]) AS u (member) LEFT JOIN owner.room_lists l ON l.member = u.member
UNION ALL (SELECT '', NULL, NULL, NULL, greatest(i.floor, (SELECT max(position) FROM owner.events)), i.id
  FROM owner.incarnations i ORDER BY i.number DESC LIMIT 1)`
	sqlWriteLists = `INSERT INTO owner.room_lists AS l (member, position, rooms)
SELECT n.member, $3, n.rooms FROM unnest($1::text[], $2::text[]) AS n (member, rooms) ORDER BY 1
ON CONFLICT (member) DO UPDATE SET position = excluded.position, rooms = excluded.rooms
WHERE l.position < excluded.position`
	sqlIntervals = `SELECT room, opened_position, coalesce(closed_position, 0), opened_version, coalesce(closed_version, 0)
FROM owner.memberships WHERE room = $1 AND member = $2 ORDER BY opened_position`
)

// maxChanges is the number of memberships that Rooms may read for a user in addition to the user's room list. If Rooms
// has read more, it writes a new list. Reading 500 memberships takes about half as long as the rest of the statement
// (make bench-size).
var maxChanges = 500

// Rooms returns the rooms that each user is in, sorted by name, and the head of the log as of which they were read. A
// user without rooms is absent from the result. Reading thousands of rooms of a user takes little longer than reading a
// few, because Rooms stores many rooms of one user in a list, which is read as a whole.
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
	var list *string
	var opened, closed []string
	var head eventlog.Point
	var outdated []string // the users whose lists are missing or old
	_, err = pgx.ForEachRow(found, []any{&member, &list, &opened, &closed, &head.Position, &head.Incarnation}, func() error {
		if member == "" {
			asOf = head
			return nil
		}
		if of := apply(list, opened, closed); len(of) > 0 {
			rooms[member] = of
		}
		if len(opened)+len(closed) > maxChanges {
			outdated = append(outdated, member)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	if len(outdated) > 0 {
		writeLists(ctx, l, outdated, rooms, asOf.Position)
	}
	return rooms, asOf, nil
}

// apply returns the rooms of a list after later changes, sorted by name. A room that was closed and opened again is in
// both parameters opened and closed, and stays.
func apply(list *string, opened, closed []string) (rooms []string) {
	if list != nil && *list != "" {
		rooms = strings.Split(*list, ",")
	}
	if len(closed) > 0 {
		gone := make(map[string]bool, len(closed))
		for _, room := range closed {
			gone[room] = true
		}
		rooms = slices.DeleteFunc(rooms, func(room string) bool { return gone[room] })
	}
	if len(opened) > 0 {
		rooms = append(rooms, opened...)
		slices.Sort(rooms)
	}
	return rooms
}

// writeLists stores the rooms of users as of a position. If the database fails, writeLists only logs the error, because
// the results of Rooms are the same without the lists.
func writeLists(ctx context.Context, l *eventlog.Log, users []string, rooms map[string][]string, asOf catalog.Position) {
	lists := make([]string, len(users))
	for i, user := range users {
		lists[i] = strings.Join(rooms[user], ",")
	}
	if _, err := l.Options().Pool.Exec(ctx, l.SQL(sqlWriteLists), users, lists, asOf); err != nil {
		l.Options().Log.WarnContext(ctx, "the room lists of users with many rooms were not stored", "users", len(users),
			"error", err)
	}
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

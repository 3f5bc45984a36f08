package membership

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// Fact selects what Facts reads about a room.
type Fact struct {
	Room string
	User string // the user whose joining is read
	// MaxCounted is the number of members above which members are not counted, so that a large room costs no more.
	MaxCounted int
}

// sqlFacts reads each fact by indices. The room's address is also the name of the stream whose events open the room.
const sqlFacts = `SELECT
  coalesce((SELECT version FROM owner.events e WHERE e.stream = f.room ORDER BY version DESC LIMIT 1), 0),
  coalesce((SELECT opened_version FROM owner.memberships m
    WHERE m.member = f.member AND m.room = f.room AND m.closed_position IS NULL LIMIT 1), 0),
  (SELECT count(*) FROM (
    SELECT FROM owner.memberships m WHERE m.room = f.room AND m.closed_position IS NULL LIMIT f.counted) m)
FROM unnest($1::text[], $2::text[], $3::integer[]) WITH ORDINALITY AS f (room, member, counted, index) ORDER BY f.index`

// Facts reads facts about rooms, for decisions that depend on them. The results have the order of the parameter wanted.
func Facts(ctx context.Context, l *eventlog.Log, wanted []Fact) ([]catalog.Room, error) {
	rooms, users, counted := make([]string, len(wanted)), make([]string, len(wanted)), make([]int32, len(wanted))
	for i, f := range wanted {
		rooms[i], users[i], counted[i] = f.Room, f.User, int32(f.MaxCounted)
	}
	found, err := l.Options().Pool.Query(ctx, l.SQL(sqlFacts), planned, rooms, users, counted)
	if err == nil {
		var all []catalog.Room
		if all, err = pgx.CollectRows(found, pgx.RowToStructByPos[catalog.Room]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read facts about %d rooms: %w", len(wanted), eventlog.Unavailable(err))
}

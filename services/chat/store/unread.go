package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// A message does not write a row for each member who has not read it. The unread messages of a member are counted when
// they are queried: by a scan of an index that begins at the member's marker and ends after maxUnread messages.
//
// A user's total over all conversations would need such a scan in each of them. The table unread_conversations spares
// it: it contains the small conversations in which a member has something unread. A row is inserted with the first
// message above the marker, and deleted when the marker passes the last one, so a marker that moves costs at most two
// writes, however many messages there are. Large conversations (see maxSmall) have no such rows, because one message
// could write thousands of them; the query of the total looks into each large conversation of the user.

const (
	// maxUnread is the highest count of unread messages and mentions. It stands for itself or more.
	maxUnread = 100
	// maxUnreadScan is the maximum number of messages above a marker that are examined to find those of other users.
	// Without this bound, counting would read all messages of a user who sends many and never moves the marker.
	maxUnreadScan = 1000
)

// unreadSQL has the parts of statements about unread messages. They refer to m, a row with the columns conversation_id,
// member and joined_version, and to r, the result of readUpTo.
type unreadSQL struct {
	// readUpTo reads the version up to which the member has read the conversation. OFFSET 0 makes the server read it once.
	readUpTo string
	messages string // selects a row for each unread message
	mentions string // selects a row for each unread message that mentions the member or all members
}

// unreadIn returns the parts for tables of a schema: "chat." or, in the statements of the projection, "".
func unreadIn(schema string) unreadSQL {
	return unreadSQL{
		readUpTo: fmt.Sprintf(`LATERAL (SELECT greatest(m.joined_version, (
			SELECT k.up_to FROM %smarkers k
			WHERE k.conversation_id = m.conversation_id AND k.member = m.member)) AS read_up_to OFFSET 0) r`, schema),
		messages: fmt.Sprintf(`SELECT FROM (
			SELECT x.author FROM %smessages x
			WHERE x.conversation_id = m.conversation_id AND x.thread_id = '' AND NOT x.deleted AND x.version > r.read_up_to
			ORDER BY x.version LIMIT %d) x WHERE x.author <> m.member`, schema, maxUnreadScan),
		mentions: fmt.Sprintf(`SELECT FROM %[1]smentions x
			WHERE x.conversation_id = m.conversation_id AND x.member = m.member AND x.version > r.read_up_to
			UNION ALL SELECT FROM (
			SELECT x.author FROM %[1]smentions x
			WHERE x.conversation_id = m.conversation_id AND x.member = '' AND x.version > r.read_up_to
			ORDER BY x.version LIMIT %[2]d) x WHERE x.author <> m.member`, schema, maxUnreadScan),
	}
}

// atMost returns an expression that counts the rows of a SELECT up to maxUnread.
func atMost(rows string) string {
	return fmt.Sprintf("(SELECT count(*) FROM (%s LIMIT %d) few)", rows, maxUnread)
}

// queried has the parts of the statements of queries.
var queried = unreadIn("chat.")

// sqlUnread reads the totals of the user $1. Of the conversations with mentions, it reads mentions only until there are
// maxUnread. LIMIT 1 makes the server look up the conversations one by one.
var sqlUnread = fmt.Sprintf(`WITH large AS (
		SELECT m.conversation_id, m.member, m.joined_version FROM chat.conversation_members m WHERE m.member = $1 AND m.large),
	mentioned AS (
		SELECT u.conversation_id, u.member, m.joined_version FROM chat.unread_conversations u, LATERAL (
			SELECT joined_version FROM chat.conversation_members m
			WHERE m.member = u.member AND m.conversation_id = u.conversation_id LIMIT 1) m
		WHERE u.member = $1 AND u.mentioned
		UNION ALL SELECT * FROM large)
	SELECT least(%[1]d, %[2]s + %[3]s), %[4]s`, maxUnread,
	atMost("SELECT FROM chat.unread_conversations u WHERE u.member = $1 AND u.messages"),
	atMost("SELECT FROM large m, "+queried.readUpTo+" WHERE EXISTS ("+queried.messages+")"),
	atMost("SELECT FROM mentioned m, "+queried.readUpTo+", LATERAL ("+queried.mentions+") x"))

// Unread returns the totals of a user over all conversations.
func (s *Store) Unread(ctx context.Context, user string) (*chatv1.UnreadResponse, error) {
	u := &chatv1.UnreadResponse{}
	if err := s.pool.QueryRow(ctx, sqlUnread, planned, user).Scan(&u.ConversationCount, &u.MentionCount); err != nil {
		return nil, fmt.Errorf("count what is unread for %s: %w", user, err)
	}
	return u, nil
}

// sqlMarkers reads the markers of the conversation $1 if it has at most $3 members, and what is unread for the user $2.
var sqlMarkers = fmt.Sprintf(`SELECT c.version, coalesce(r.read_up_to, 0), %[1]s, %[2]s, shown.members, shown.seen
	FROM chat.conversations c
	LEFT JOIN chat.conversation_members m ON m.conversation_id = c.conversation_id AND m.member = $2
	CROSS JOIN %[3]s
	CROSS JOIN LATERAL (
		SELECT array_agg(o.member ORDER BY o.joined_version, o.joined_index) AS members,
			array_agg(coalesce(k.seen_up_to, 0) ORDER BY o.joined_version, o.joined_index) AS seen
		FROM chat.conversation_members o
		LEFT JOIN chat.markers k ON k.conversation_id = o.conversation_id AND k.member = o.member
		WHERE c.member_count <= $3 AND o.conversation_id = c.conversation_id) shown
	WHERE c.conversation_id = $1`, atMost(queried.messages), atMost(queried.mentions), queried.readUpTo)

// Markers returns how far the members of a conversation have read it, if they are at most maxShown, and what is unread
// for a user. The version in the result is 0 if the conversation is unknown.
func (s *Store) Markers(ctx context.Context, id, user string, maxShown int) (*chatv1.MarkersResponse, error) {
	a := &chatv1.MarkersResponse{}
	var members []string
	var seen []int64
	err := s.pool.QueryRow(ctx, sqlMarkers, planned, id, user, maxShown).Scan(&a.Version, &a.ReadUpTo, &a.UnreadCount,
		&a.MentionCount, &members, &seen)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read markers of %s: %w", id, err)
	}
	for i, member := range members {
		a.Markers = append(a.Markers, &chatv1.Marker{UserId: member, SeenUpTo: seen[i]})
	}
	return a, nil
}

package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/page"
)

// A user's list of conversations is sorted by the position of each conversation's newest event, the newest first.
//
// The list is read through an index over conversation_members, which has one row for each member of each conversation.
// If these rows contained the position, every message would rewrite the rows of all members. They contain a period
// instead: the position without its lowest bits, smallShift bits in a small conversation and largeShift bits in a large
// one. For example, messages at the positions 5,000 and 5,100 are both in period 19 of a small conversation, so the
// second message rewrites no row of a member. A message at position 5,200 is in period 20 and rewrites all of them,
// which are at most maxSmall. In a large conversation, with up to 2,000 members, all three messages are in period 0.
//
// Conversations with the same period are sorted by their positions, which are in the table conversations. So a page
// reads all of the user's conversations in its first and its last period. At most 256 small conversations have the same
// period, because a period of small conversations has 256 positions; a period of large ones has a million, but few
// users are in many large conversations. (Before migration 00003_periods.sql, smallShift was 10.)
const smallShift, largeShift = 8, 20

// maxSmall is the number of members above which a conversation is large. It is also the maximum number of members that
// a list of conversations names for each conversation.
const maxSmall = 64

// sqlConversations reads a page of small and a page of large conversations, each sorted by period and then by position,
// and merges them.
var sqlConversations = fmt.Sprintf(`WITH page AS (
		(SELECT c.*, m.role, m.member, m.joined_version FROM chat.conversation_members m, LATERAL (
			SELECT * FROM chat.conversations c WHERE c.conversation_id = m.conversation_id LIMIT 1) c
		WHERE m.member = $1 AND NOT m.large AND m.period <= $2::bigint >> %[2]d AND c.position < $2
		ORDER BY m.period DESC, c.position DESC LIMIT $3)
		UNION ALL
		(SELECT c.*, m.role, m.member, m.joined_version FROM chat.conversation_members m, LATERAL (
			SELECT * FROM chat.conversations c WHERE c.conversation_id = m.conversation_id LIMIT 1) c
		WHERE m.member = $1 AND m.large AND m.period <= $2::bigint >> %[3]d AND c.position < $2
		ORDER BY m.period DESC, c.position DESC LIMIT $3))
	SELECT m.conversation_id, m.kind, m.title, m.picture, m.role, m.member_count, m.version, m.position, m.newest_at, ARRAY(
		SELECT o.member FROM chat.conversation_members o WHERE o.conversation_id = m.conversation_id
		ORDER BY o.joined_version, o.joined_index LIMIT %[1]d), r.read_up_to, %[4]s, %[5]s
	FROM page m, %[6]s ORDER BY m.position DESC LIMIT $3`, maxSmall, smallShift, largeShift,
	atMost(queried.messages), atMost(queried.mentions), queried.readUpTo)

// Conversations returns a page of a user's conversations, those with the newest events first. If the parameter below is
// not 0, only conversations whose newest event has a lower position are returned. The result next is the value of the
// parameter below for the following page; on the last page, the result is 0.
func (s *Store) Conversations(ctx context.Context, user string, below catalog.Position, limit int) (
	all []*chatv1.Conversation, next catalog.Position, err error) {
	if below == 0 {
		below = math.MaxInt64
	}
	rows, err := s.pool.Query(ctx, sqlConversations, planned, user, below, limit+1)
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	var positions []catalog.Position
	bytes, fitting := 0, 0
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Conversation, error) {
		c := &chatv1.Conversation{}
		var position catalog.Position
		var changed time.Time
		err := row.Scan(&c.ConversationId, &c.Kind, &c.Title, &c.Picture, &c.Role, &c.MemberCount, &c.Version, &position, &changed, &c.UserIds,
			&c.ReadUpTo, &c.UnreadCount, &c.MentionCount)
		c.Role, c.ChangedAt = shownRole(c.Kind, c.Role), timestamppb.New(changed)
		positions = append(positions, position)
		bytes += len(c.ConversationId) + len(c.Title) + len(c.Picture)
		for _, user := range c.UserIds {
			bytes += len(user)
		}
		if fitting == 0 || bytes <= MaxPageBytes {
			fitting++
		}
		return c, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	all, next = page.Cut(all, min(fitting, limit), func(row int) catalog.Position { return positions[row] })
	return all, next, nil
}

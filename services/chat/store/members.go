package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/page"
)

// JoinOrder is a member's place in the order of joining.
type JoinOrder struct {
	Version catalog.Version // the version of the conversation at which the member joined
	Index   int32           // the place among the members who joined at that version, from 0
}

const sqlMembers = `SELECT c.version, c.member_count, m.member, m.joined_version, m.joined_index
	FROM chat.conversations c LEFT JOIN LATERAL (
		SELECT m.member, m.joined_version, m.joined_index FROM chat.conversation_members m
		WHERE m.conversation_id = $1 AND (m.joined_version, m.joined_index) > ($2, $3)
		ORDER BY m.joined_version, m.joined_index LIMIT $4) m ON true
	WHERE c.conversation_id = $1 ORDER BY m.joined_version, m.joined_index`

// Members is a page of the members of a conversation.
type Members struct {
	Version catalog.Version // the version of the conversation as of which the page was read; 0 if the conversation is unknown
	Count   int32           // the number of all members
	Users   []string
	Next    JoinOrder // the place of the page's last member if there are more members; otherwise zero
}

// Members returns a page of the members of a conversation: those who follow a place in the order of joining, in that
// order.
func (s *Store) Members(ctx context.Context, id string, after JoinOrder, limit int) (Members, error) {
	var m Members
	rows, err := s.pool.Query(ctx, sqlMembers, planned, id, after.Version, after.Index, limit+1)
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	var user *string
	var version *catalog.Version
	var index *int32
	var places []JoinOrder
	_, err = pgx.ForEachRow(rows, []any{&m.Version, &m.Count, &user, &version, &index}, func() error {
		if user != nil { // null in the only row of an answer without members
			m.Users, places = append(m.Users, *user), append(places, JoinOrder{*version, *index})
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	m.Users, m.Next = page.Cut(m.Users, limit, func(row int) JoinOrder { return places[row] })
	return m, nil
}

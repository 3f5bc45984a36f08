package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/page"
)

// JoinOrder is a member's place in the order of joining.
type JoinOrder struct {
	Version catalog.Version // the version of the conversation at which the member joined
	Index   int32           // the place among the members who joined at that version, from 0
}

const sqlMembers = `SELECT c.version, c.kind, c.member_count, m.member, m.role, m.joined_version, m.joined_index
	FROM chat.conversations c LEFT JOIN LATERAL (
		SELECT m.member, m.role, m.joined_version, m.joined_index FROM chat.conversation_members m
		WHERE m.conversation_id = $1 AND (m.joined_version, m.joined_index) > ($2, $3)
		ORDER BY m.joined_version, m.joined_index LIMIT $4) m ON true
	WHERE c.conversation_id = $1 ORDER BY m.joined_version, m.joined_index`

// Members is a page of the members of a conversation.
type Members struct {
	Version catalog.Version // the version of the conversation as of which the page was read; 0 if the conversation is unknown
	Count   int32           // the number of all members
	Members []*chatv1.Member
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
	var kind chatv1.Kind
	var user *string
	var role *chatv1.Role
	var version *catalog.Version
	var index *int32
	var places []JoinOrder
	_, err = pgx.ForEachRow(rows, []any{&m.Version, &kind, &m.Count, &user, &role, &version, &index}, func() error {
		if user != nil { // null in the only row of an answer without members
			m.Members = append(m.Members, &chatv1.Member{UserId: *user, Role: shownRole(kind, *role)})
			places = append(places, JoinOrder{*version, *index})
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	m.Members, m.Next = page.Cut(m.Members, limit, func(row int) JoinOrder { return places[row] })
	return m, nil
}

// shownRole returns the role of a member in answers. The members of direct conversations have none.
func shownRole(kind chatv1.Kind, role chatv1.Role) chatv1.Role {
	if kind == chatv1.Kind_KIND_DIRECT {
		return chatv1.Role_ROLE_UNSPECIFIED
	}
	return role
}

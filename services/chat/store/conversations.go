package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// ProjectionName is the name of the projection of DeclareConversations.
const ProjectionName = "conversations"

// sqlJoin adds members as in a small conversation. The statement advance, which runs later, corrects the columns large
// and period.
var sqlJoin = fmt.Sprintf(`
	INSERT INTO conversation_members (member, conversation_id, role, joined_version, joined_index, period)
	SELECT member, id, role, version, index, position >> %d
	FROM unnest($1::text[], $2::text[], $3::integer[], $4::bigint[], $5::integer[], $6::bigint[])
	AS n (id, member, role, version, index, position) ON CONFLICT DO NOTHING`, smallShift)

// sqlAdvance stores the newest event of each conversation, in three steps: it counts the members if they have changed
// (newest), updates the conversation (advanced), and then updates its members' rows in which the column period (see
// smallShift) or large differs from the conversation's value. LIMIT 1 makes the server look up the conversations one by
// one.
var sqlAdvance = fmt.Sprintf(`WITH newest AS (
		SELECT n.*, c.position AS old_position, CASE WHEN n.members_changed THEN (
			SELECT count(*) FROM conversation_members m WHERE m.conversation_id = n.id) END AS members
		FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::boolean[])
			AS n (id, version, position, at, members_changed),
		LATERAL (SELECT position FROM conversations WHERE conversation_id = n.id LIMIT 1) c),
	advanced AS (
		UPDATE conversations c SET version = newest.version, position = newest.position, newest_at = newest.at,
			member_count = CASE WHEN newest.members_changed THEN newest.members ELSE c.member_count END,
			large = CASE WHEN newest.members_changed THEN newest.members > %[1]d ELSE c.large END
		FROM newest WHERE c.conversation_id = newest.id
		RETURNING c.conversation_id AS id, c.large, newest.members_changed,
			newest.old_position >> (CASE WHEN c.large THEN %[3]d ELSE %[2]d END) AS old_period,
			c.position >> (CASE WHEN c.large THEN %[3]d ELSE %[2]d END) AS period)
	UPDATE conversation_members m SET large = advanced.large, period = advanced.period FROM advanced
	WHERE m.conversation_id = advanced.id AND (advanced.members_changed OR advanced.period <> advanced.old_period)
		AND (m.large <> advanced.large OR m.period <> advanced.period)`, maxSmall, smallShift, largeShift)

// Each statement writes the rows of a whole batch of events.
const (
	sqlStart = `INSERT INTO conversations
		(conversation_id, kind, title, picture, history_from_joining, version, position, newest_at)
		SELECT id, kind, title, picture, from_joining, 0, 0, at
		FROM unnest($1::text[], $2::integer[], $3::text[], $4::text[], $5::boolean[], $6::timestamptz[])
		AS n (id, kind, title, picture, from_joining, at)`
	sqlLeave = `DELETE FROM conversation_members m USING unnest($1::text[], $2::text[]) AS n (id, member)
		WHERE m.conversation_id = n.id AND m.member = n.member`
	sqlSetRole = `UPDATE conversation_members m SET role = n.role
		FROM unnest($1::text[], $2::text[], $3::integer[]) AS n (id, member, role)
		WHERE m.conversation_id = n.id AND m.member = n.member`
	// sqlSucceed makes the member who joined first the owner of a group without an owner. Only events of an earlier
	// release leave a group with members without an owner: when the owner left, they did not name the new one.
	sqlSucceed = `UPDATE conversation_members m SET role = 1
		FROM unnest($1::text[]) AS n (id), LATERAL (
			SELECT FROM conversations c WHERE c.conversation_id = n.id AND c.kind = 2 LIMIT 1) c, LATERAL (
			SELECT member FROM conversation_members o WHERE o.conversation_id = n.id
			ORDER BY joined_version, joined_index LIMIT 1) first
		WHERE m.conversation_id = n.id AND m.member = first.member AND NOT EXISTS (
			SELECT FROM conversation_members o WHERE o.conversation_id = n.id AND o.role = 1)`
	sqlSetTitle = `UPDATE conversations c SET title = n.title FROM unnest($1::text[], $2::text[]) AS n (id, title)
		WHERE c.conversation_id = n.id`
	sqlSetPicture = `UPDATE conversations c SET picture = n.picture FROM unnest($1::text[], $2::text[]) AS n (id, picture)
		WHERE c.conversation_id = n.id`
)

// The first columns of a statement's rows are their key: a row that is added to a batch replaces an earlier row with
// the same key. These constants are the numbers of columns in the key.
const (
	everyRow       = 0 // no key: every row is written
	byConversation = 1
	byMember       = 2 // the key is the conversation and the user
	byMessage      = 2 // the key is the conversation and the message
)

// conversationWriter has the statements that write conversations and their members. Each method adds the rows of one
// event for these statements to a batch.
type conversationWriter struct {
	start, leave, join, setRole, succeed, setTitle, setPicture, advance *projection.Statement

	unread *unreadWriter
}

// DeclareConversations declares the projection of conversations, their members, their messages with the reactions, and
// of what is unread.
func DeclareConversations() *projection.Projection {
	p := projection.Declare(ProjectionName, projection.Options{Streams: []string{"conversation", "marker", "reactions"},
		Tables: []string{"conversations", "conversation_members", "messages", "edits", "pins", "reaction_counts", "reactions",
			"markers", "mentions", "unread_conversations"}})
	// A batch executes its statements in the order of their declaration: a user who leaves and is added again within
	// one batch has to leave first, and gets a role last.
	c := &conversationWriter{start: p.Statement(everyRow, sqlStart), leave: p.Statement(byMember, sqlLeave),
		join: p.Statement(byMember, sqlJoin), setRole: p.Statement(byMember, sqlSetRole),
		succeed:  p.Statement(byConversation, sqlSucceed),
		setTitle: p.Statement(byConversation, sqlSetTitle), setPicture: p.Statement(byConversation, sqlSetPicture),
		advance: p.Statement(byConversation, sqlAdvance)}
	projection.On(p, c.started)
	projection.On(p, c.added)
	projection.On(p, c.left)
	projection.On(p, c.roleChanged)
	projection.On(p, c.titleChanged)
	projection.On(p, c.pictureChanged)
	declareMessages(p, c)
	c.unread = declareUnread(p)
	return p
}

func (c *conversationWriter) started(b *projection.Batch, e projection.Event, m *chatv1.ConversationStarted) {
	b.Add(c.start, e.ID, int32(m.Kind), storable(m.Title), storable(m.Picture), m.HistoryFromJoining, e.Time)
	for i, user := range m.UserIds {
		c.addMember(b, e, user, conversation.FirstRole(m.Kind, i), i)
	}
	c.advanceTo(b, e, true)
}

func (c *conversationWriter) added(b *projection.Batch, e projection.Event, m *chatv1.MemberAdded) {
	c.addMember(b, e, m.UserId, conversation.AddedRole(m), 0)
	c.unread.membersChanged(b, e)
	c.advanceTo(b, e, true)
}

func (c *conversationWriter) left(b *projection.Batch, e projection.Event, m *chatv1.MemberLeft) {
	b.Add(c.leave, e.ID, m.UserId)
	b.Remove(c.join, e.ID, m.UserId)
	b.Remove(c.setRole, e.ID, m.UserId)
	if m.NewOwnerId != "" {
		b.Add(c.setRole, e.ID, m.NewOwnerId, int32(chatv1.Role_ROLE_OWNER))
	} else {
		b.Add(c.succeed, e.ID)
	}
	c.unread.membersChanged(b, e)
	c.advanceTo(b, e, true)
}

func (c *conversationWriter) roleChanged(b *projection.Batch, e projection.Event, m *chatv1.RoleChanged) {
	b.Add(c.setRole, e.ID, m.UserId, int32(m.Role))
	if m.PreviousOwnerId != "" {
		b.Add(c.setRole, e.ID, m.PreviousOwnerId, int32(chatv1.Role_ROLE_ADMIN))
	}
	c.advanceTo(b, e, false)
}

func (c *conversationWriter) titleChanged(b *projection.Batch, e projection.Event, m *chatv1.TitleChanged) {
	b.Add(c.setTitle, e.ID, storable(m.Title))
	c.advanceTo(b, e, false)
}

func (c *conversationWriter) pictureChanged(b *projection.Batch, e projection.Event, m *chatv1.PictureChanged) {
	b.Add(c.setPicture, e.ID, storable(m.Picture))
	c.advanceTo(b, e, false)
}

// advanceTo records an event as the newest of its conversation.
func (c *conversationWriter) advanceTo(b *projection.Batch, e projection.Event, membersChanged bool) {
	const changedColumn = 4 // the index of membersChanged in a row of c.advance
	if earlier := b.Row(c.advance, e.ID); earlier != nil {
		membersChanged = membersChanged || earlier[changedColumn].(bool)
	}
	b.Add(c.advance, e.ID, e.Version, e.Position, e.Time, membersChanged)
}

// addMember adds the row of a member, unless an earlier event of the batch has already added it.
func (c *conversationWriter) addMember(b *projection.Batch, e projection.Event, user string, role chatv1.Role, index int) {
	if b.Row(c.join, e.ID, user) == nil {
		b.Add(c.join, e.ID, user, int32(role), e.Version, int32(index), e.Position)
	}
}

// storable replaces the character U+0000, which Postgres cannot store. Commands that contain this character are
// refused, but an event of an earlier release may contain it, and must not stop the projection.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// Settings are the properties of a conversation that apply to all its members.
type Settings struct {
	FromJoining bool // each member's history begins with joining
}

const sqlSettings = `SELECT version, history_from_joining FROM chat.conversations WHERE conversation_id = $1`

// Settings returns a conversation's settings and the version as of which they were read, which is 0 if it is unknown.
func (s *Store) Settings(ctx context.Context, id string) (c Settings, version catalog.Version, err error) {
	err = s.pool.QueryRow(ctx, sqlSettings, id).Scan(&version, &c.FromJoining)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return c, 0, fmt.Errorf("read conversation %s: %w", id, err)
	}
	return c, version, nil
}

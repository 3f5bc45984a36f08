package store

import (
	"strings"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// ProjectionName is the key under which the position of Conversations is stored.
const ProjectionName = "conversations"

// A user's conversations are listed in the order of their newest events, by an index over one row for each member. To
// move these rows with every message would cost one write per member and message, so they contain a period only: the
// position without its lowest bits (8 of a small conversation, 20 of a large one). Small conversations move at most once
// in 256 positions of the log, large ones, which have up to 2,000 rows to move, at most once in a million. A list sorts
// within a period by the exact position, so a page reads all of a user's conversations of its first and last period: of
// small ones at most 256 each.

// maxSmall is the number of members above which a conversation is large. It is also how many members a list shows.
const maxSmall = 64

// Each statement writes the rows of a whole batch of events.
const (
	sqlStart = `INSERT INTO conversations (conversation_id, kind, title, history_from_joining, version, position, changed_at)
		SELECT id, kind, title, from_joining, 0, 0, at
		FROM unnest($1::text[], $2::integer[], $3::text[], $4::boolean[], $5::timestamptz[])
		AS n (id, kind, title, from_joining, at)`
	sqlLeave = `DELETE FROM conversation_members m USING unnest($1::text[], $2::text[]) AS n (id, member)
		WHERE m.conversation_id = n.id AND m.member = n.member`
	sqlJoin = `INSERT INTO conversation_members (member, conversation_id, joined_version, joined_index, period)
		SELECT member, id, version, index, position >> 8
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::bigint[])
		AS n (id, member, version, index, position) ON CONFLICT DO NOTHING`
	// The rows of members move when they come into another period, or when members of the conversation changed.
	sqlMove = `WITH moved AS (
			UPDATE conversations c SET version = n.version, position = n.position, changed_at = n.at,
				member_count = CASE WHEN n.changed THEN n.members ELSE c.member_count END,
				large = CASE WHEN n.changed THEN n.members > 64 ELSE c.large END
			FROM (
				SELECT u.*, o.was, CASE WHEN u.changed THEN (
					SELECT count(*) FROM conversation_members m WHERE m.conversation_id = u.id) END AS members
				FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::boolean[])
					AS u (id, version, position, at, changed),
				LATERAL (SELECT position AS was FROM conversations o WHERE o.conversation_id = u.id LIMIT 1) o) n
			WHERE c.conversation_id = n.id
			RETURNING c.conversation_id AS id, c.large, n.changed, n.was >> (CASE WHEN c.large THEN 20 ELSE 8 END) AS was,
				c.position >> (CASE WHEN c.large THEN 20 ELSE 8 END) AS period)
		UPDATE conversation_members m SET large = moved.large, period = moved.period FROM moved
		WHERE m.conversation_id = moved.id AND (moved.changed OR moved.period <> moved.was)
			AND (m.large <> moved.large OR m.period <> moved.period)`
	sqlSend = `INSERT INTO messages (conversation_id, version, message_id, author, body, sent_at)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])`
	sqlEdit = `INSERT INTO edits (conversation_id, message_id, version, body, edited_at)
		SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[])`
	sqlDelete = `WITH gone AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (id, message, version)),
		forgotten AS (
			DELETE FROM edits e USING gone
			WHERE e.conversation_id = gone.id AND e.message_id = gone.message AND e.version < gone.version)
		UPDATE messages m SET body = '', deleted = true FROM gone
		WHERE m.conversation_id = gone.id AND m.message_id = gone.message AND m.version < gone.version`
)

// conversations holds the statements of the projection.
type conversations struct{ start, leave, join, move, send, edit, remove *projection.Statement }

// Conversations declares the projection.
func Conversations() *projection.Projection {
	p := projection.Declare(ProjectionName, projection.Options{Streams: []string{"conversation"},
		Tables: []string{"conversations", "conversation_members", "messages", "edits"}})
	c := conversations{start: p.Statement(0, sqlStart), leave: p.Statement(2, sqlLeave), join: p.Statement(2, sqlJoin),
		move: p.Statement(1, sqlMove), send: p.Statement(0, sqlSend), edit: p.Statement(0, sqlEdit),
		remove: p.Statement(0, sqlDelete)}
	projection.On(p, c.started)
	projection.On(p, c.added)
	projection.On(p, c.left)
	projection.On(p, c.sent)
	projection.On(p, c.edited)
	projection.On(p, c.deleted)
	return p
}

func (c *conversations) started(b *projection.Batch, e projection.Event, m *chatv1.ConversationStarted) {
	b.Add(c.start, e.ID, int32(m.Kind), storable(m.Title), m.HistoryFromJoining, e.Time)
	c.touch(b, e, true)
	for i, user := range m.UserIds {
		c.enter(b, e, user, i)
	}
}

func (c *conversations) added(b *projection.Batch, e projection.Event, m *chatv1.MemberAdded) {
	c.touch(b, e, true)
	c.enter(b, e, m.UserId, 0)
}

func (c *conversations) left(b *projection.Batch, e projection.Event, m *chatv1.MemberLeft) {
	c.touch(b, e, true)
	b.Add(c.leave, e.ID, m.UserId)
	b.Remove(c.join, e.ID, m.UserId)
}

func (c *conversations) sent(b *projection.Batch, e projection.Event, m *chatv1.MessageSent) {
	c.touch(b, e, false)
	b.Add(c.send, e.ID, e.Version, m.MessageId, e.Actor, storable(m.Body), e.Time)
}

func (c *conversations) edited(b *projection.Batch, e projection.Event, m *chatv1.MessageEdited) {
	c.touch(b, e, false)
	b.Add(c.edit, e.ID, m.MessageId, e.Version, storable(m.Body), e.Time)
}

func (c *conversations) deleted(b *projection.Batch, e projection.Event, m *chatv1.MessageDeleted) {
	c.touch(b, e, false)
	b.Add(c.remove, e.ID, m.MessageId, e.Version)
}

// touch makes an event the newest of its conversation.
func (c *conversations) touch(b *projection.Batch, e projection.Event, membersChanged bool) {
	if row := b.Row(c.move, e.ID); row != nil {
		membersChanged = membersChanged || row[4].(bool)
	}
	b.Add(c.move, e.ID, e.Version, e.Position, e.Time, membersChanged)
}

// enter makes a user a member, unless they are one after the earlier events of the batch.
func (c *conversations) enter(b *projection.Batch, e projection.Event, user string, index int) {
	if b.Row(c.join, e.ID, user) == nil {
		b.Add(c.join, e.ID, user, e.Version, int32(index), e.Position)
	}
}

// storable replaces the zero character, which Postgres cannot store. Commands with it are refused; an old event in the
// log must not stop the projection.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

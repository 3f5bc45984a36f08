package store

import (
	"fmt"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

const (
	sqlMove = `INSERT INTO markers (conversation_id, member, up_to, seen_up_to)
		SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
		ON CONFLICT (conversation_id, member) DO UPDATE SET up_to = excluded.up_to, seen_up_to = excluded.seen_up_to`
	sqlUnmention = `DELETE FROM mentions x USING unnest($1::text[], $2::text[]) AS n (id, message)
		WHERE x.conversation_id = n.id AND x.message_id = n.message`
	// sqlMention derives the mentions of a message from its newest text. A message may have been sent more than once with
	// the same id.
	sqlMention = `INSERT INTO mentions (conversation_id, member, version, message_id, author)
		SELECT m.conversation_id, x.member, m.version, m.message_id, m.author
		FROM unnest($1::text[], $2::text[]) AS n (id, message)
		JOIN messages m ON m.conversation_id = n.id AND m.message_id = n.message AND NOT m.deleted
		LEFT JOIN LATERAL (
			SELECT e.mentioned, e.mentions_all FROM edits e
			WHERE e.conversation_id = m.conversation_id AND e.message_id = m.message_id AND e.version > m.version
			ORDER BY e.version DESC LIMIT 1) e ON true
		CROSS JOIN LATERAL unnest(CASE WHEN coalesce(e.mentions_all, m.mentions_all) THEN '{""}'
			ELSE coalesce(e.mentioned, m.mentioned) END) AS x (member)
		WHERE x.member <> m.author
		ON CONFLICT DO NOTHING`
	sqlClear = `DELETE FROM unread_conversations u USING unnest($1::text[], $2::text[]) AS n (id, member)
		WHERE u.conversation_id = n.id AND (n.member = '' OR u.member = n.member)`
)

var (
	projected = unreadIn("") // the parts of the statements of the projection
	// sqlMembersOf selects the members of n.id if this conversation is small. OFFSET 0 makes the server find out first
	// whether it is.
	sqlMembersOf = `JOIN conversations c ON c.conversation_id = n.id AND NOT c.large
		CROSS JOIN LATERAL (
			SELECT o.conversation_id, o.member, o.joined_version FROM conversation_members o
			WHERE o.conversation_id = c.conversation_id OFFSET 0) m`
	// sqlRaise adds a conversation to those in which a member has unread messages, for the members other than the author
	// of a new message.
	sqlRaise = fmt.Sprintf(`INSERT INTO unread_conversations (conversation_id, member, messages, mentioned)
		SELECT DISTINCT m.conversation_id, m.member, true, false
		FROM unnest($1::text[], $2::text[]) AS n (id, author) %s CROSS JOIN %s
		WHERE m.member <> n.author AND NOT EXISTS (
			SELECT FROM unread_conversations u
			WHERE u.conversation_id = m.conversation_id AND u.member = m.member AND u.messages)
		AND EXISTS (%s)
		ON CONFLICT (conversation_id, member) DO UPDATE SET messages = true`, sqlMembersOf, projected.readUpTo, projected.messages)
	// sqlRestore derives the rows of one member, or of all members if the member is '', after sqlClear has deleted them.
	sqlRestore = fmt.Sprintf(`INSERT INTO unread_conversations (conversation_id, member, messages, mentioned)
		SELECT DISTINCT m.conversation_id, m.member, s.messages, s.mentioned
		FROM unnest($1::text[], $2::text[]) AS n (id, member) %s CROSS JOIN %s
		CROSS JOIN LATERAL (SELECT EXISTS (%s) AS messages, EXISTS (%s) AS mentioned) s
		WHERE (n.member = '' OR m.member = n.member) AND (s.messages OR s.mentioned)`, sqlMembersOf, projected.readUpTo,
		projected.messages, projected.mentions)
)

// unreadWriter has the statements that write markers, mentions, and the conversations in which members have something
// unread. Each method adds the rows of one event for these statements to a batch.
//
// Every row of unread_conversations is derived from the other tables as they are after the batch. So the rows do not
// depend on how events are divided into batches.
type unreadWriter struct {
	move, unmention, mention, raise, clear, restore *projection.Statement
}

// declareUnread declares the statements and the function for the events of markers. It must be called after the other
// statements are declared, because these statements read rows that earlier statements of the same batch have written.
func declareUnread(p *projection.Projection) *unreadWriter {
	w := &unreadWriter{move: p.Statement(byMember, sqlMove), unmention: p.Statement(byMessage, sqlUnmention),
		mention: p.Statement(byMessage, sqlMention), raise: p.Statement(byMember, sqlRaise),
		clear: p.Statement(byMember, sqlClear), restore: p.Statement(byMember, sqlRestore)}
	projection.On(p, w.moved)
	return w
}

func (w *unreadWriter) moved(b *projection.Batch, _ projection.Event, m *chatv1.ReadMarkerMoved) {
	b.Add(w.move, m.ConversationId, m.UserId, m.UpTo, m.SeenUpTo)
	w.derive(b, m.ConversationId, m.UserId)
}

func (w *unreadWriter) sent(b *projection.Batch, e projection.Event, m *chatv1.MessageSent) {
	if m.ThreadId == "" {
		b.Add(w.raise, e.ID, e.Actor)
	}
	if !m.MentionsAll && len(m.MentionedUserIds) == 0 {
		return
	}
	b.Add(w.mention, e.ID, m.MessageId)
	if m.MentionsAll {
		w.derive(b, e.ID, "")
		return
	}
	for _, user := range m.MentionedUserIds {
		w.derive(b, e.ID, user)
	}
}

// changed handles the edit or the deletion of a message.
func (w *unreadWriter) changed(b *projection.Batch, e projection.Event, message string) {
	b.Add(w.unmention, e.ID, message)
	b.Add(w.mention, e.ID, message)
	w.derive(b, e.ID, "")
}

// membersChanged handles a member who has joined or left. The conversation may have become large or small.
func (w *unreadWriter) membersChanged(b *projection.Batch, e projection.Event) { w.derive(b, e.ID, "") }

// derive makes the batch derive the row of a member in a conversation, or the rows of all members if the member is "".
func (w *unreadWriter) derive(b *projection.Batch, id, member string) {
	b.Add(w.clear, id, member)
	b.Add(w.restore, id, member)
}

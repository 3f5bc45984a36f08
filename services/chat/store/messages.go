package store

import (
	"strings"
	"time"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// Each statement writes the rows of a whole batch of events. Lists of user ids are texts that are joined by commas,
// because unnest cannot return lists of different lengths; an id contains no comma.
const (
	sqlSend = `INSERT INTO messages
		(conversation_id, version, message_id, author, body, sent_at, reply_to, thread_id, mentioned, mentions_all)
		SELECT id, version, message, author, body, at, reply_to, thread, string_to_array(mentioned, ','), mentions_all
		FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::text[],
			$9::text[], $10::boolean[])
		AS n (id, version, message, author, body, at, reply_to, thread, mentioned, mentions_all)`
	sqlEdit = `INSERT INTO edits (conversation_id, message_id, version, body, edited_at, mentioned, mentions_all)
		SELECT id, message, version, body, at, string_to_array(mentioned, ','), mentions_all
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[], $6::text[], $7::boolean[])
		AS n (id, message, version, body, at, mentioned, mentions_all)`
	// sqlReply changes the number of replies in threads, and the newest reply if the column author is not empty.
	sqlReply = `UPDATE messages m SET reply_count = m.reply_count + n.change,
		last_reply_at = CASE WHEN n.author = '' THEN m.last_reply_at ELSE n.at END,
		last_reply_by = CASE WHEN n.author = '' THEN m.last_reply_by ELSE n.author END
		FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[], $5::timestamptz[]) AS n (id, thread, change, author, at)
		WHERE m.conversation_id = n.id AND m.message_id = n.thread`
	// sqlDelete empties earlier messages only, because a message can be sent again with the id of a deleted one.
	sqlDelete = `WITH gone AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (id, message, version)),
		forgotten AS (
			DELETE FROM edits e USING gone
			WHERE e.conversation_id = gone.id AND e.message_id = gone.message AND e.version < gone.version)
		UPDATE messages m SET body = '', mentioned = '{}', mentions_all = false, deleted = true FROM gone
		WHERE m.conversation_id = gone.id AND m.message_id = gone.message AND m.version < gone.version`
	sqlUnpin = `DELETE FROM pins p USING unnest($1::text[], $2::text[]) AS n (id, message)
		WHERE p.conversation_id = n.id AND p.message_id = n.message`
	sqlPin = `INSERT INTO pins (conversation_id, message_id, version, pinned_by, pinned_at)
		SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[])`
)

// messageWriter has the statements that write messages. Each method adds the rows of one event for these statements to
// a batch.
type messageWriter struct {
	*conversationWriter
	send, edit, reply, remove, unpin, pin *projection.Statement
	reactions                             *reactionWriter
}

// declareMessages declares the functions for the events about messages.
func declareMessages(p *projection.Projection, c *conversationWriter) {
	// A batch executes its statements in the order of these declarations. The statement send precedes reply, which
	// updates rows of sent messages. The statement unpin precedes pin, so that a message that is unpinned and pinned
	// again within one batch is pinned at the end. The statement remove is an update without a key. This is safe,
	// because all its rows set the same values.
	m := messageWriter{conversationWriter: c, send: p.Statement(everyRow, sqlSend), edit: p.Statement(everyRow, sqlEdit),
		reply: p.Statement(byMessage, sqlReply), remove: p.Statement(everyRow, sqlDelete),
		unpin: p.Statement(byMessage, sqlUnpin), pin: p.Statement(byMessage, sqlPin), reactions: declareReactions(p)}
	projection.On(p, m.sent)
	projection.On(p, m.edited)
	projection.On(p, m.deleted)
	projection.On(p, m.pinned)
	projection.On(p, m.unpinned)
}

func (w messageWriter) sent(b *projection.Batch, e projection.Event, m *chatv1.MessageSent) {
	b.Add(w.send, e.ID, e.Version, m.MessageId, e.Actor, storable(m.Body), e.Time, m.ReplyTo, m.ThreadId,
		strings.Join(m.MentionedUserIds, ","), m.MentionsAll)
	w.countReply(b, e, m.ThreadId, 1, e.Actor)
	w.unread.sent(b, e, m)
	w.advanceTo(b, e, false)
}

func (w messageWriter) edited(b *projection.Batch, e projection.Event, m *chatv1.MessageEdited) {
	b.Add(w.edit, e.ID, m.MessageId, e.Version, storable(m.Body), e.Time, strings.Join(m.MentionedUserIds, ","), m.MentionsAll)
	w.unread.changed(b, e, m.MessageId)
	w.advanceTo(b, e, false)
}

func (w messageWriter) deleted(b *projection.Batch, e projection.Event, m *chatv1.MessageDeleted) {
	b.Add(w.remove, e.ID, m.MessageId, e.Version)
	w.reactions.messageDeleted(b, e, m.MessageId)
	w.countReply(b, e, m.ThreadId, -1, "")
	w.unread.changed(b, e, m.MessageId)
	w.advanceTo(b, e, false)
}

func (w messageWriter) pinned(b *projection.Batch, e projection.Event, m *chatv1.MessagePinned) {
	b.Add(w.pin, e.ID, m.MessageId, e.Version, e.Actor, e.Time)
	w.advanceTo(b, e, false)
}

func (w messageWriter) unpinned(b *projection.Batch, e projection.Event, m *chatv1.MessageUnpinned) {
	b.Add(w.unpin, e.ID, m.MessageId)
	b.Remove(w.pin, e.ID, m.MessageId)
	w.advanceTo(b, e, false)
}

// countReply adds a change of the number of replies in a thread. The author of a deletion is empty, because a deletion
// does not change which reply is the newest. Without a thread, countReply adds nothing.
func (w messageWriter) countReply(b *projection.Batch, e projection.Event, thread string, change int32, author string) {
	if thread == "" {
		return
	}
	at := e.Time
	if earlier := b.Row(w.reply, e.ID, thread); earlier != nil { // id, thread, change, author, at
		change += earlier[2].(int32)
		if author == "" {
			author, at = earlier[3].(string), earlier[4].(time.Time)
		}
	}
	b.Add(w.reply, e.ID, thread, change, author, at)
}

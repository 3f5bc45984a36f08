package store

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/page"
)

// Each statement writes the rows of a whole batch of events. Lists are texts that are joined by commas, because unnest
// cannot return lists of different lengths; an emoji contains no comma.
const (
	sqlUnreact = `DELETE FROM reactions r USING unnest($1::text[], $2::text[], $3::text[], $4::text[])
			AS n (id, message, member, emoji)
		WHERE r.conversation_id = n.id AND r.message_id = n.message AND r.member = n.member AND r.emoji = n.emoji`
	sqlReact = `INSERT INTO reactions (conversation_id, message_id, member, emoji, version, position, reacted_at)
		SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[])`
	sqlCountReactions = `INSERT INTO reaction_counts (conversation_id, message_id, version, position, emojis, counts)
		SELECT id, message, version, position, string_to_array(emojis, ','), string_to_array(counts, ',')::integer[]
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])
			AS n (id, message, version, position, emojis, counts)
		ON CONFLICT (conversation_id, message_id) DO UPDATE SET version = excluded.version, position = excluded.position,
			emojis = excluded.emojis, counts = excluded.counts`
	// sqlClearReactions deletes earlier reactions only, because a message can be sent again with the id of a deleted one.
	sqlClearReactions = `WITH gone AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (id, message, position)),
		cleared AS (
			DELETE FROM reactions r USING gone
			WHERE r.conversation_id = gone.id AND r.message_id = gone.message AND r.position < gone.position)
		DELETE FROM reaction_counts c USING gone
		WHERE c.conversation_id = gone.id AND c.message_id = gone.message AND c.position < gone.position`
)

const byReaction = 4 // the key is the conversation, the message, the user and the emoji

// reactionWriter has the statements that write reactions.
type reactionWriter struct{ unreact, react, count, clear *projection.Statement }

// declareReactions declares the function for the events about reactions. A batch executes its statements in the order
// of their declaration: a reaction that is removed and added again within one batch has to be removed first, and the
// reactions to a message that is deleted have to be written before they are deleted.
func declareReactions(p *projection.Projection) *reactionWriter {
	w := &reactionWriter{unreact: p.Statement(byReaction, sqlUnreact), react: p.Statement(byReaction, sqlReact),
		count: p.Statement(byMessage, sqlCountReactions), clear: p.Statement(everyRow, sqlClearReactions)}
	projection.On(p, w.changed)
	return w
}

func (w *reactionWriter) changed(b *projection.Batch, e projection.Event, m *chatv1.ReactionsChanged) {
	if m.Added {
		b.Add(w.react, m.ConversationId, m.MessageId, e.Actor, m.Emoji, e.Version, e.Position, e.Time)
	} else {
		b.Remove(w.react, m.ConversationId, m.MessageId, e.Actor, m.Emoji)
		b.Add(w.unreact, m.ConversationId, m.MessageId, e.Actor, m.Emoji)
	}
	var emojis, counts []string
	for _, c := range m.Counts {
		emojis, counts = append(emojis, c.Emoji), append(counts, strconv.Itoa(int(c.Count)))
	}
	b.Add(w.count, m.ConversationId, m.MessageId, e.Version, e.Position, strings.Join(emojis, ","), strings.Join(counts, ","))
}

// messageDeleted deletes the reactions to a message.
func (w *reactionWriter) messageDeleted(b *projection.Batch, e projection.Event, message string) {
	b.Add(w.clear, e.ID, message, e.Position)
}

// sqlReactionsOf reads the reactions to the messages $2 of the conversation $1, and which of them are those of the user
// $3.
const sqlReactionsOf = `SELECT c.message_id, c.version, c.emojis, c.counts, own.emojis
	FROM unnest($2::text[]) AS n (message), LATERAL (
		SELECT * FROM chat.reaction_counts WHERE conversation_id = $1 AND message_id = n.message LIMIT 1) c, LATERAL (
		SELECT ARRAY(SELECT emoji FROM chat.reactions
			WHERE conversation_id = $1 AND message_id = n.message AND member = $3) AS emojis) own`

// AddReactions reads the reactions to messages of a conversation, as a user sees them, and sets the fields of the
// messages. Deleted messages have none.
func (s *Store) AddReactions(ctx context.Context, id, user string, messages []*chatv1.Message) error {
	var ids []string
	byID := map[string]*chatv1.Message{}
	for _, m := range messages {
		if !m.Deleted {
			ids, byID[m.MessageId] = append(ids, m.MessageId), m
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := s.pool.Query(ctx, sqlReactionsOf, planned, id, ids, user)
	if err != nil {
		return fmt.Errorf("read reactions in %s: %w", id, err)
	}
	var message string
	var version int64
	var emojis, own []string
	var counts []int32
	_, err = pgx.ForEachRow(rows, []any{&message, &version, &emojis, &counts, &own}, func() error {
		m := byID[message]
		m.Reactions, m.ReactionsVersion = nil, version
		for i, emoji := range emojis {
			m.Reactions = append(m.Reactions, &chatv1.Reaction{Emoji: emoji, Count: counts[i], Own: slices.Contains(own, emoji)})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read reactions in %s: %w", id, err)
	}
	return nil
}

// sqlReactions reads the reactions to the message $2 of the conversation $1 above a version ($4), at most one page
// ($5): those with the emoji $3, or all if it is empty. It returns one row without a reaction if there is none.
const sqlReactions = `SELECT c.version, c.history_from_joining, coalesce(m.version, 0), coalesce(n.version, 0), r.version,
		r.member, r.emoji, r.reacted_at
	FROM chat.conversations c
	LEFT JOIN LATERAL (
		SELECT version FROM chat.messages WHERE conversation_id = $1 AND message_id = $2
		ORDER BY version DESC LIMIT 1) m ON true
	LEFT JOIN LATERAL (
		SELECT version FROM chat.reaction_counts WHERE conversation_id = $1 AND message_id = $2 LIMIT 1) n ON true
	LEFT JOIN LATERAL (
		SELECT version, member, emoji, reacted_at FROM chat.reactions
		WHERE conversation_id = $1 AND message_id = $2 AND ($3::text = '' OR emoji = $3) AND version > $4
		ORDER BY version LIMIT $5) r ON true
	WHERE c.conversation_id = $1 ORDER BY r.version`

// Reactions is a page of the reactions to a message.
type Reactions struct {
	Settings     Settings
	Conversation catalog.Version // the conversation's version as of which the page was read; 0 if the conversation is unknown
	Message      catalog.Version // at which the message was sent; 0 if it is unknown
	Version      catalog.Version // of the message's reactions; 0 if nobody has ever reacted, or the message is deleted
	Reactions    []*chatv1.UserReaction
	Next         catalog.Version // the version of the page's last reaction if there are more reactions; otherwise 0
}

// Reactions returns a page of the reactions to a message that were added after a version of the message's reactions,
// the oldest first. If the parameter emoji is not empty, only these reactions are returned.
func (s *Store) Reactions(ctx context.Context, id, message, emoji string, after catalog.Version, limit int) (
	r Reactions, err error) {
	rows, err := s.pool.Query(ctx, sqlReactions, planned, id, message, emoji, after, limit+1)
	if err != nil {
		return r, fmt.Errorf("read reactions to %s in %s: %w", message, id, err)
	}
	var version *catalog.Version
	var member, of *string
	var at *time.Time
	var versions []catalog.Version
	_, err = pgx.ForEachRow(rows, []any{&r.Conversation, &r.Settings.FromJoining, &r.Message, &r.Version, &version, &member, &of, &at},
		func() error {
			if version != nil { // null if there is no reaction
				r.Reactions = append(r.Reactions, &chatv1.UserReaction{UserId: *member, Emoji: *of, ReactedAt: timestamppb.New(*at)})
				versions = append(versions, *version)
			}
			return nil
		})
	if err != nil {
		return r, fmt.Errorf("read reactions to %s in %s: %w", message, id, err)
	}
	r.Reactions, r.Next = page.Cut(r.Reactions, limit, func(row int) catalog.Version { return versions[row] })
	return r, nil
}

package store

import (
	"fmt"
	"slices"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store/words"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// SearchName is the name of the projection of DeclareSearch.
const SearchName = "search"

// blockSize is the number of versions of a block, and the number of blocks of a span (see migration 00007_search.sql).
// Searching all blocks of a long conversation takes less time if they are large, and the words of a short one take less
// space if they are small.
const blockSize = 512

// Besides the words of their texts, messages have words for the properties by which a search filters them. The words of
// a text contain no punctuation.
const (
	wordFrom        = "from:"     // with the author's id
	wordMentions    = "mentions:" // with the id of a mentioned user
	wordMentionsAll = wordMentions + "*"
)

// Each statement writes the rows of a whole batch of events.
var (
	sqlSearchConversation = `INSERT INTO search_conversations (conversation_id, number)
		SELECT * FROM unnest($1::text[], $2::bigint[]) ON CONFLICT DO NOTHING`
	sqlSearchMessage = `INSERT INTO search_messages (conversation, version, message_id, sent_at)
		SELECT c.number, n.version, n.message, n.at
		FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[]) AS n (id, version, message, at)
		JOIN search_conversations c ON c.conversation_id = n.id`
	sqlSearchBlock = fmt.Sprintf(`INSERT INTO search_blocks AS b (conversation, block, oldest_at, newest_at)
		SELECT c.number, n.version / %d, min(n.at), max(n.at)
		FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS n (id, version, at)
		JOIN search_conversations c ON c.conversation_id = n.id GROUP BY 1, 2
		ON CONFLICT (conversation, block) DO UPDATE
		SET oldest_at = least(b.oldest_at, excluded.oldest_at), newest_at = greatest(b.newest_at, excluded.newest_at)`, blockSize)
	sqlSearchWord = writeWords(`
		SELECT c.number AS conversation, n.version, n.word
		FROM unnest($1::text[], $2::bigint[], $3::text[]) AS n (id, version, word)
		JOIN search_conversations c ON c.conversation_id = n.id`)
	// sqlSearchEdit adds the words of a new text. The words of the earlier texts remain, because a user who left before
	// the edit reads one of those texts.
	sqlSearchEdit = writeWords(`
		SELECT m.conversation, m.version, n.word
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS n (id, message, version, word)
		JOIN search_conversations c ON c.conversation_id = n.id
		JOIN search_messages m ON m.conversation = c.number AND m.message_id = n.message AND m.version < n.version`)
	// sqlSearchForget removes messages and all their words. It reads all words of the blocks of these messages, because
	// the words of each message are not stored. As in sqlDelete, only earlier messages are removed.
	sqlSearchForget = fmt.Sprintf(`WITH gone AS (
			SELECT m.conversation, m.version FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (id, message, version)
			JOIN search_conversations c ON c.conversation_id = n.id
			JOIN search_messages m ON m.conversation = c.number AND m.message_id = n.message AND m.version < n.version),
		blocks AS (
			SELECT conversation, version / %[1]d AS block, bit_or(%[2]s) AS gone FROM gone GROUP BY 1, 2),
		emptied AS (
			DELETE FROM search_words w USING blocks b
			WHERE w.conversation = b.conversation AND w.block = b.block AND (w.messages & ~b.gone) = %[4]s
			RETURNING w.conversation, w.block, w.word),
		cleared AS (
			UPDATE search_words w SET messages = w.messages & ~b.gone FROM blocks b
			WHERE w.conversation = b.conversation AND w.block = b.block AND (w.messages & b.gone) <> %[4]s
				AND (w.messages & ~b.gone) <> %[4]s),
		spans AS (
			SELECT conversation, block / %[1]d AS span, word, bit_or(%[3]s) AS gone FROM emptied GROUP BY 1, 2, 3),
		emptied_spans AS (
			DELETE FROM search_spans s USING spans n
			WHERE s.conversation = n.conversation AND s.span = n.span AND s.word = n.word AND (s.blocks & ~n.gone) = %[4]s),
		cleared_spans AS (
			UPDATE search_spans s SET blocks = s.blocks & ~n.gone FROM spans n
			WHERE s.conversation = n.conversation AND s.span = n.span AND s.word = n.word AND (s.blocks & ~n.gone) <> %[4]s)
		DELETE FROM search_messages m USING gone WHERE m.conversation = gone.conversation AND m.version = gone.version`,
		blockSize, bitOf("gone.version"), bitOf("block"), noBits)
)

// writeWords returns the statement that adds words to their blocks, and to the spans of these blocks. The parameter
// texts is a statement that selects each word with the conversation and the version of its message.
func writeWords(texts string) string {
	return fmt.Sprintf(`WITH texts AS (%[1]s),
		words AS (
			SELECT conversation, version / %[2]d AS block, word, bit_or(%[3]s) AS messages FROM texts GROUP BY 1, 2, 3),
		spans AS (
			INSERT INTO search_spans AS s (conversation, span, word, blocks)
			SELECT conversation, block / %[2]d, word, bit_or(%[4]s) FROM words WHERE block > 0 GROUP BY 1, 2, 3
			ON CONFLICT (conversation, span, word) DO UPDATE SET blocks = s.blocks | excluded.blocks
			WHERE (s.blocks & excluded.blocks) <> excluded.blocks)
		INSERT INTO search_words AS w (conversation, block, word, messages)
		SELECT conversation, block, word, messages FROM words
		ON CONFLICT (conversation, block, word) DO UPDATE SET messages = w.messages | excluded.messages`,
		texts, blockSize, bitOf("version"), bitOf("block"))
}

// noBits is the value of a column of bits without messages or blocks, in SQL.
var noBits = fmt.Sprintf("0::bit(%d)", blockSize)

// bitOf returns the value of a column of bits with one version or one block, in SQL.
func bitOf(number string) string {
	return fmt.Sprintf("set_bit(%s, (%s %% %d)::integer, 1)", noBits, number, blockSize)
}

// searchWriter has the statements that write the tables of searches. Each method adds the rows of one event for these
// statements to a batch.
type searchWriter struct {
	conversation, message, block, word, edit, forget *projection.Statement
}

// DeclareSearch declares the projection of the words of messages, by which searches find them. It is a projection of
// its own because a message leads to many rows: if it lags behind the log, the history of conversations does not.
func DeclareSearch() *projection.Projection {
	p := projection.Declare(SearchName, projection.Options{Streams: []string{"conversation"},
		Tables: []string{"search_conversations", "search_blocks", "search_messages", "search_words", "search_spans"}})
	// A batch executes its statements in the order of their declaration: a message that is deleted within the batch
	// that sends it has to be written before it is removed.
	w := searchWriter{conversation: p.Statement(byConversation, sqlSearchConversation),
		message: p.Statement(everyRow, sqlSearchMessage), block: p.Statement(everyRow, sqlSearchBlock),
		word: p.Statement(everyRow, sqlSearchWord), edit: p.Statement(everyRow, sqlSearchEdit),
		forget: p.Statement(everyRow, sqlSearchForget)}
	projection.On(p, w.sent)
	projection.On(p, w.edited)
	projection.On(p, w.deleted)
	p.IgnoreOthers() // only messages have words
	return p
}

func (w searchWriter) sent(b *projection.Batch, e projection.Event, m *chatv1.MessageSent) {
	if b.Row(w.conversation, e.ID) == nil { // the first message of the conversation determines its number
		b.Add(w.conversation, e.ID, e.Position)
	}
	b.Add(w.message, e.ID, e.Version, m.MessageId, e.Time)
	b.Add(w.block, e.ID, e.Version, e.Time)
	for _, word := range append(wordsOf(m.Body, m.MentionedUserIds, m.MentionsAll), wordFrom+e.Actor) {
		b.Add(w.word, e.ID, e.Version, word)
	}
}

func (w searchWriter) edited(b *projection.Batch, e projection.Event, m *chatv1.MessageEdited) {
	for _, word := range wordsOf(m.Body, m.MentionedUserIds, m.MentionsAll) {
		b.Add(w.edit, e.ID, m.MessageId, e.Version, word)
	}
}

func (w searchWriter) deleted(b *projection.Batch, e projection.Event, m *chatv1.MessageDeleted) {
	b.Add(w.forget, e.ID, m.MessageId, e.Version)
}

// wordsOf returns the distinct words of a text, and those of the users whom it mentions.
func wordsOf(body string, mentioned []string, all bool) []string {
	found := words.All(body)
	for _, user := range slices.Compact(slices.Sorted(slices.Values(mentioned))) {
		found = append(found, wordMentions+user)
	}
	if all {
		found = append(found, wordMentionsAll)
	}
	return found
}

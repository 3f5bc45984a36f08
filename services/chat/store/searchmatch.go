package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Block is a part of a conversation.
type Block struct {
	Of int // the index of the conversation
	// OldestAt is not after the time at which any message of the block was sent, and NewestAt is not before it.
	OldestAt, NewestAt time.Time

	number int64 // of the conversation
	block  int32
	last   catalog.Version // no later message was sent in the time that is searched
}

// sqlBlocks finds the blocks of conversations ($1) that overlap a range of blocks ($2, $3), have messages of a time
// ($4, $5), and may have all of some words ($7), the block with the newest of these messages first. Of a block that
// ends after this time, it looks up the last message within the time. LIMIT makes the server look up the blocks of
// one conversation after the other.
var sqlBlocks = fmt.Sprintf(`SELECT n.index - 1, c.number, b.block, coalesce(m.version, (b.block + 1)::bigint * %[1]d - 1),
		b.oldest_at, coalesce(m.sent_at, b.newest_at) AS newest_at
	FROM unnest($1::text[], $2::integer[], $3::integer[]) WITH ORDINALITY AS n (id, lower, upper, index)
	CROSS JOIN LATERAL (SELECT number FROM chat.search_conversations WHERE conversation_id = n.id LIMIT 1) c
	CROSS JOIN LATERAL (
		(SELECT * FROM chat.search_blocks
		WHERE n.lower = 0 AND conversation = c.number AND block = 0 AND oldest_at <= $5 AND newest_at >= $4 LIMIT 1)
		UNION ALL
		(SELECT b.* FROM generate_series(n.upper / %[1]d, n.lower / %[1]d, -1) AS span (number)
		CROSS JOIN LATERAL (
			SELECT coalesce(bit_and(blocks), ~%[2]s) AS blocks FROM chat.search_spans s
			WHERE n.upper > 0 AND s.conversation = c.number AND s.span = span.number AND s.word = ANY ($7)
			HAVING n.upper > 0 AND count(*) = cardinality($7::text[])) s
		CROSS JOIN LATERAL (
			SELECT * FROM chat.search_blocks b
			WHERE b.conversation = c.number AND b.block >= greatest(n.lower, span.number * %[1]d, 1)
				AND b.block <= least(n.upper, span.number * %[1]d + %[1]d - 1) AND get_bit(s.blocks, b.block %% %[1]d) = 1
				AND oldest_at <= $5 AND newest_at >= $4
			ORDER BY block DESC LIMIT $6) b
		ORDER BY b.block DESC LIMIT $6)) b
	LEFT JOIN LATERAL (
		SELECT version, sent_at FROM chat.search_messages m
		WHERE b.newest_at > $5 AND m.conversation = c.number AND m.version >= b.block::bigint * %[1]d
			AND m.version < (b.block + 1)::bigint * %[1]d AND m.sent_at <= $5
		ORDER BY version DESC LIMIT 1) m ON true
	WHERE b.newest_at <= $5 OR m.version IS NOT NULL
	ORDER BY newest_at DESC, c.number DESC, b.block DESC LIMIT $6`, blockSize, noBits)

// Blocks returns blocks of conversations with messages that were sent from one time to another, both included: at most
// as many as the parameter limit, the one with the newest message first. It leaves out most blocks that do not have all
// words.
func (s *Search) Blocks(ctx context.Context, all []Searched, w Words, from, until time.Time, limit int) ([]Block, error) {
	var ids []string
	var lower, upper []int32
	for _, c := range all {
		if n := len(c.Ranges); n > 0 {
			lower = append(lower, int32(c.Ranges[0].From/blockSize))
			upper = append(upper, int32(c.Ranges[n-1].To/blockSize))
		} else {
			lower, upper = append(lower, 0), append(upper, -1) // no block
		}
		ids = append(ids, c.ID)
	}
	rows, err := s.tx.Query(ctx, sqlBlocks, planned, ids, lower, upper, from, until, limit, w.required())
	if err != nil {
		return nil, fmt.Errorf("find blocks of messages: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Block, err error) {
		err = row.Scan(&b.Of, &b.number, &b.block, &b.last, &b.OldestAt, &b.NewestAt)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("find blocks of messages: %w", err)
	}
	return found, nil
}

// Words are the words by which messages are looked up. A message that has them need not match the search.
type Words struct {
	All    []string // every word is required
	Prefix string   // the beginning of another required word; empty: none
	From   string   // the author; empty: any author
	// Mentions is the user who has to be mentioned, alone or with all members; empty: nobody has to be.
	Mentions string
}

// required returns the words that every message has, including the word of its author.
func (w Words) required() []string {
	all := append([]string{}, w.All...)
	if w.From != "" {
		all = append(all, wordFrom+w.From)
	}
	return all
}

// sqlMatch finds the messages of blocks ($1, $2) that have all of some words ($3), one of some words ($4), and a word
// within a range ($5, $6). An empty list or range requires nothing. The second and the third step are skipped for
// blocks that have no message left.
var sqlMatch = fmt.Sprintf(`SELECT n.index - 1, prefixed.messages
	FROM unnest($1::bigint[], $2::integer[]) WITH ORDINALITY AS n (conversation, block, index)
	CROSS JOIN LATERAL (
		SELECT coalesce(bit_and(w.messages), ~%[1]s) AS messages FROM chat.search_words w
		WHERE w.conversation = n.conversation AND w.block = n.block AND w.word = ANY ($3)
		HAVING count(*) = cardinality($3::text[])) required
	CROSS JOIN LATERAL (
		SELECT CASE WHEN cardinality($4::text[]) = 0 THEN required.messages
			ELSE required.messages & coalesce(bit_or(w.messages), %[1]s) END AS messages
		FROM chat.search_words w
		WHERE required.messages <> %[1]s AND w.conversation = n.conversation AND w.block = n.block AND w.word = ANY ($4)) mentioning
	CROSS JOIN LATERAL (
		SELECT CASE WHEN $5::text = '' THEN mentioning.messages
			ELSE mentioning.messages & coalesce(bit_or(w.messages), %[1]s) END AS messages
		FROM chat.search_words w
		WHERE mentioning.messages <> %[1]s AND $5 <> '' AND w.conversation = n.conversation AND w.block = n.block
			AND w.word >= $5 AND w.word < $6::text AND strpos(w.word, ':') = 0) prefixed
	WHERE prefixed.messages <> %[1]s`, noBits)

// Matched is a block with messages that have the words of a search.
type Matched struct {
	Block
	// Versions are the versions of the messages that the reader can read, the newest first.
	Versions []catalog.Version
}

// Match returns the blocks that have messages with words, in the order of the parameter blocks.
func (s *Search) Match(ctx context.Context, all []Searched, blocks []Block, w Words) (matched []Matched, err error) {
	some := []string{}
	if w.Mentions != "" {
		some = append(some, wordMentions+w.Mentions, wordMentionsAll)
	}
	var numbers []int64
	var places []int32
	for _, b := range blocks {
		numbers, places = append(numbers, b.number), append(places, b.block)
	}
	rows, err := s.tx.Query(ctx, sqlMatch, planned, numbers, places, w.required(), some, w.Prefix, w.Prefix+"\U0010FFFF")
	if err != nil {
		return nil, fmt.Errorf("find messages with words: %w", err)
	}
	versions := make([][]catalog.Version, len(blocks))
	var index int
	var bits pgtype.Bits
	_, err = pgx.ForEachRow(rows, []any{&index, &bits}, func() error {
		b := blocks[index]
		for n := blockSize - 1; n >= 0; n-- {
			version := catalog.Version(int64(b.block)*blockSize + int64(n))
			if version <= b.last && bits.Bytes[n/8]&(0x80>>(n%8)) != 0 && all[b.Of].includes(version) {
				versions[index] = append(versions[index], version)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find messages with words: %w", err)
	}
	for i, v := range versions {
		if len(v) > 0 {
			matched = append(matched, Matched{blocks[i], v})
		}
	}
	return matched, nil
}

// Candidate is a message that has the words of a search.
type Candidate struct {
	Of      int // the index of its conversation
	Version catalog.Version
	SentAt  time.Time
	Number  int64 // of its conversation; it orders messages that were sent at the same time

	messageID string
}

const sqlSent = `SELECT n.index - 1, m.message_id, m.sent_at
	FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS n (conversation, version, index), LATERAL (
		SELECT message_id, sent_at FROM chat.search_messages m
		WHERE m.conversation = n.conversation AND m.version = n.version LIMIT 1) m ORDER BY n.index`

// Candidates returns the messages with some versions of blocks: for each block those that exist, in the order of the
// versions.
func (s *Search) Candidates(ctx context.Context, of []Matched) ([][]Candidate, error) {
	var blocks []int // of each version
	var numbers, versions []int64
	for i, m := range of {
		for _, v := range m.Versions {
			blocks, numbers, versions = append(blocks, i), append(numbers, m.number), append(versions, int64(v))
		}
	}
	rows, err := s.tx.Query(ctx, sqlSent, planned, numbers, versions)
	if err != nil {
		return nil, fmt.Errorf("read when messages were sent: %w", err)
	}
	all := make([][]Candidate, len(of))
	var index int
	var id string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&index, &id, &at}, func() error {
		i := blocks[index]
		all[i] = append(all[i], Candidate{Of: of[i].Of, Version: catalog.Version(versions[index]), SentAt: at,
			Number: numbers[index], messageID: id})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read when messages were sent: %w", err)
	}
	return all, nil
}

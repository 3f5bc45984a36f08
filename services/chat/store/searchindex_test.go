//go:build integration

package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
)

func newSearchFixture(t *testing.T) *fixture {
	t.Helper()
	l := eventlogtest.Open(t, "chat", store.Migrations())
	l.Follow(store.DeclareConversations(), store.DeclareSearch())
	return &fixture{l, t, store.New(l.Pool)}
}

func sent(id, message, body string) proto.Message {
	return &chatv1.MessageSent{ConversationId: id, MessageId: message, Body: body}
}

func edited(id, message, body string) proto.Message {
	return &chatv1.MessageEdited{ConversationId: id, MessageId: message, Body: body}
}

func deleted(id, message string) proto.Message {
	return &chatv1.MessageDeleted{ConversationId: id, MessageId: message}
}

// matching returns the versions of a conversation's messages that have some words, the newest first.
func (f *fixture) matching(id string, w store.Words) (versions []catalog.Version) {
	f.t.Helper()
	f.CatchUp()
	require.NoError(f.t, f.store.Search(f.t.Context(), func(s *store.Search) error {
		of := []store.Searched{{ID: id, Ranges: []store.Range{{From: 1, To: 1 << 30}}}}
		blocks, err := s.Blocks(f.t.Context(), of, w, time.Unix(0, 0), time.Now().Add(time.Hour), 1000)
		require.NoError(f.t, err)
		matched, err := s.Match(f.t.Context(), of, blocks, w)
		require.NoError(f.t, err)
		for _, m := range matched {
			versions = append(versions, m.Versions...)
		}
		return nil
	}))
	return versions
}

// The rows depend neither on the batches in which events are applied, nor on texts that were deleted before they were
// applied.
func TestSearchIndex_ARebuildGivesTheSameRows(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.example()
	f.happens("ann", group("c", "ann", "bob"))
	// One batch: messages are sent, edited, deleted and sent again with the same id, as after a lost outcome.
	f.happens("ann", sent("c", "m1", "one"), edited("c", "m1", "two"), deleted("c", "m1"), sent("c", "m1", "three"),
		edited("c", "m1", "four"), sent("c", "m2", "five"), sent("c", "m2", "five"), edited("c", "m2", "six"))
	f.happens("bob", sent("c", "m3", "seven\x00 eight"), sent("c", "m4", ""), sent("c", "m5", "one two"))
	f.happens("ann", deleted("c", "m2"))
	f.happens("ann", edited("c", "m5", "nine"), deleted("c", "m5"))
	require.Empty(t, f.matching("c", store.Words{All: []string{"one"}}))
	require.Empty(t, f.matching("c", store.Words{All: []string{"two"}}))
	require.Empty(t, f.matching("c", store.Words{All: []string{"six"}}))
	require.Equal(t, []catalog.Version{5}, f.matching("c", store.Words{All: []string{"four", "three"}}))
	require.Equal(t, []catalog.Version{10}, f.matching("c", store.Words{Prefix: "eig", From: "bob"}))
	require.Equal(t, []catalog.Version{11, 10}, f.matching("c", store.Words{From: "bob"}))
	f.RequireRebuild()
}

// Messages at the borders of blocks, which have 512 versions each, are found under their own versions. If no
// message of a block has a word any longer, a search for this word finds neither the block nor its messages.
func TestSearchIndex_BlocksHaveTheirMessages(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	all := []proto.Message{group("c", "ann", "bob")}
	for version := 2; version <= 1100; version++ {
		all = append(all, sent("c", fmt.Sprint(version), fmt.Sprintf("number %d odd%d", version, version%2)))
	}
	for at := 0; at < len(all); at += 300 {
		f.happens("ann", all[at:min(at+300, len(all))]...)
	}
	for _, version := range []catalog.Version{2, 3, 511, 512, 513, 1023, 1024, 1025, 1100} {
		require.Equal(t, []catalog.Version{version}, f.matching("c", store.Words{All: []string{fmt.Sprint(version)}}))
	}
	require.Len(t, f.matching("c", store.Words{All: []string{"number"}}), 1099)
	require.Len(t, f.matching("c", store.Words{All: []string{"number", "odd1"}}), 549)
	require.Empty(t, f.matching("c", store.Words{All: []string{"odd1"}, Prefix: "odd0"}))
	f.happens("ann", edited("c", "1030", "number zero"), edited("c", "600", "number zero"), edited("c", "2", "number zero"))
	require.Equal(t, []catalog.Version{1030, 600, 2}, f.matching("c", store.Words{All: []string{"zero"}}))
	f.happens("ann", deleted("c", "600"))
	require.Equal(t, []catalog.Version{1030, 2}, f.matching("c", store.Words{All: []string{"zero"}}))
	require.Empty(t, f.matching("c", store.Words{All: []string{"600"}}))
	f.happens("ann", sent("c", "600", "number 600"), deleted("c", "512"), deleted("c", "511"))
	require.Len(t, f.matching("c", store.Words{All: []string{"number"}}), 1097)
	require.Equal(t, []catalog.Version{513, 510}, f.matching("c", store.Words{All: []string{"number"}})[587:589])
	f.RequireRebuild()
}

// The number of rows that a search reads must depend neither on the number of messages in other conversations, nor on
// how frequent a word is there. A search of a long conversation reads the words of its blocks, and not its messages.
func TestPlans_ASearchReadsOnlyItsConversations(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.happens("ann", group("tiny", "ann", "bob"), sent("tiny", "m", "homework"), group("big", "eve", "bob"),
		sent("big", "m", "homework"))
	f.CatchUp()
	const blocks, vocabulary = 400, 150 // of the conversation big, and of each of its blocks
	const messages, conversations = 20_000, 3_000
	_, err := f.Pool.Exec(t.Context(), fmt.Sprintf(`
CREATE TEMPORARY TABLE big AS SELECT number FROM chat.search_conversations WHERE conversation_id = 'big';
INSERT INTO chat.search_blocks
SELECT number, n, now() - (%[1]d - n) * interval '1 minute', now() - (%[1]d - n) * interval '1 minute'
FROM big, generate_series(1, %[1]d) n;
INSERT INTO chat.search_words
SELECT number, n, CASE w WHEN 0 THEN 'homework' WHEN 1 THEN 'maths' ELSE 'word' || w END, ~0::bit(512)
FROM big, generate_series(1, %[1]d) n, generate_series(0, %[2]d) w;
INSERT INTO chat.search_spans
SELECT number, n, CASE w WHEN 0 THEN 'homework' WHEN 1 THEN 'maths' ELSE 'word' || w END, ~0::bit(512)
FROM big, generate_series(0, 3) n, generate_series(0, %[3]d) w;
INSERT INTO chat.search_messages SELECT number, n, 'm' || n, now() FROM big, generate_series(10, %[3]d) n;
INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at)
SELECT 'big', n, 'm' || n, 'ann', 'homework', now() FROM generate_series(10, %[3]d) n;
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at)
SELECT 'c' || n, 2, '', true, 3, n, now() FROM generate_series(1, %[4]d) n;
INSERT INTO chat.memberships (room, member, opened_version, opened_position, closed_version, closed_position)
SELECT 'conversation:c' || n, 'heavy', 1, n, CASE n %% 2 WHEN 0 THEN 3 END, CASE n %% 2 WHEN 0 THEN n + 1 END
FROM generate_series(1, %[4]d) n;
DROP TABLE big;
ANALYZE chat.search_blocks, chat.search_words, chat.search_messages, chat.messages, chat.conversations, chat.memberships`,
		blocks, vocabulary, messages, conversations), pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	var tiny, big int64
	require.NoError(t, f.Pool.QueryRow(t.Context(), `SELECT min(number), max(number) FROM chat.search_conversations`).Scan(&tiny, &big))
	in := func(id string, last int32, words ...string) []any {
		return []any{[]string{id}, []int32{0}, []int32{last}, time.Unix(0, 0), time.Now().Add(time.Hour), 2049, append([]string{}, words...)}
	}
	words := func(number int64, n int, all, some []string, prefix string) []any {
		var numbers []int64
		var places []int32
		for i := range n {
			numbers, places = append(numbers, number), append(places, int32(blocks-i))
		}
		return []any{numbers, places, all, some, prefix, prefix + "\U0010FFFF"}
	}
	var numbers, versions []int64
	var ids, messageIDs []string
	for n := int64(100); n < 150; n++ {
		numbers, versions, ids = append(numbers, big), append(versions, n), append(ids, "big")
		messageIDs = append(messageIDs, fmt.Sprint("m", n))
	}
	none := []string{}
	for name, test := range map[string]struct {
		statement string
		args      []any
		most      int
	}{
		// Each conversation costs its row, its newest interval, all its intervals, and a look for later ones.
		"the conversations of a user":            {store.SQLJoined, []any{"heavy", int64(1 << 40), 501}, 3*501 + 2*501},
		"a later page of conversations":          {store.SQLJoined, []any{"heavy", int64(1500), 501}, 3*501 + 2*501},
		"the blocks of a small conversation":     {store.SQLBlocks, in("tiny", 0, "homework"), 3},
		"the blocks of a large conversation":     {store.SQLBlocks, in("big", blocks, "homework", "maths"), blocks + 4},
		"no block has a rare word":               {store.SQLBlocks, in("big", blocks, "homework", "rare"), 4},
		"the blocks for the beginning of a word": {store.SQLBlocks, in("big", blocks), blocks + 2},
		"a frequent word elsewhere":              {store.SQLMatch, words(tiny, 1, []string{"homework"}, none, ""), 1},
		"a beginning that is frequent elsewhere": {store.SQLMatch, words(tiny, 1, none, none, "w"), 1},
		"a frequent word":                        {store.SQLMatch, words(big, 64, []string{"homework"}, none, ""), 64},
		"a rare word":                            {store.SQLMatch, words(big, blocks, []string{"rare"}, none, ""), 0},
		"a frequent word and a rare one":         {store.SQLMatch, words(big, blocks, []string{"homework", "rare"}, none, "w"), blocks},
		"two frequent words":                     {store.SQLMatch, words(big, 64, []string{"homework", "maths"}, none, ""), 128},
		"one of two words":                       {store.SQLMatch, words(big, 64, none, []string{"maths", "rare"}, ""), 64},
		"the beginning of a word":                {store.SQLMatch, words(big, 64, []string{"maths"}, none, "homew"), 128},
		"the times of messages":                  {store.SQLSent, []any{numbers, versions}, 50},
		"the texts of messages": {store.SQLFound, []any{ids, []int64{1}, []int64{messages}, messageIDs, store.MaxPageBytes, versions,
			[]string{"big"}}, 50},
	} {
		rows, scanned := rowsRead(t, f, test.statement, test.args...)
		require.LessOrEqual(t, rows, test.most, name)
		require.Empty(t, scanned, name)
	}
}

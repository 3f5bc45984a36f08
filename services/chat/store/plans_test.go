//go:build integration

package store_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store"
)

// node is one step of an executed query plan, as EXPLAIN reports it.
type node struct {
	Type    string  `json:"Node Type"`
	Table   string  `json:"Relation Name"`
	Rows    float64 `json:"Actual Rows"`
	Loops   float64 `json:"Actual Loops"`
	Removed float64 `json:"Rows Removed by Filter"`
	Plans   []node
}

// rowsRead executes a statement. It returns the number of rows that the statement read from tables, and the tables that
// it scanned sequentially.
func rowsRead(t *testing.T, f *fixture, statement string, args ...any) (rows int, scanned []string) {
	t.Helper()
	args = append([]any{pgx.QueryExecModeCacheDescribe}, args...)
	var raw []byte
	require.NoError(t, f.Pool.QueryRow(t.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+statement, args...).Scan(&raw))
	var plans []struct{ Plan node }
	require.NoError(t, json.Unmarshal(raw, &plans))
	var visit func(node)
	visit = func(n node) {
		if n.Table != "" {
			rows += int((n.Rows + n.Removed) * n.Loops)
		}
		if n.Type == "Seq Scan" {
			scanned = append(scanned, n.Table)
		}
		for _, child := range n.Plans {
			visit(child)
		}
	}
	visit(plans[0].Plan)
	return rows, scanned
}

// The number of rows that a query reads must depend on the size of the page, not on the size of the tables.
func TestPlans_APageReadsRowsOfItsSizeOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const messages, conversations, members = 30_000, 3_000, 2_000
	_, err := f.Pool.Exec(t.Context(), fmt.Sprintf(`
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at, member_count, large)
SELECT 'c' || n, 2, '', true, 3, n * 700, now(), 2, n %% 10 = 0 FROM generate_series(1, %[2]d) n;
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at, member_count, large)
VALUES ('busy', 2, '', true, %[1]d + 1, 1, now(), %[3]d, true);
INSERT INTO chat.conversation_members (member, conversation_id, joined_version, large, period)
SELECT 'ann', 'c' || n, 1, n %% 10 = 0, (n * 700) >> CASE n %% 10 WHEN 0 THEN 20 ELSE 8 END FROM generate_series(1, %[2]d) n;
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at, member_count, large)
SELECT 'z' || n, 2, '', true, 3, 3000000 + n, now(), 2, false FROM generate_series(1, %[2]d) n;
INSERT INTO chat.conversation_members (member, conversation_id, joined_version, large, period)
SELECT 'zoe', 'z' || n, 1, false, (3000000 + n) >> 8 FROM generate_series(1, %[2]d) n;
INSERT INTO chat.conversation_members (member, conversation_id, joined_version, joined_index, large, period)
SELECT 'member' || n, 'busy', 1, n, true, 0 FROM generate_series(1, %[3]d) n;
INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at)
SELECT 'busy', n + 1, 'm' || n, 'ann', 'text', now() FROM generate_series(1, %[1]d) n;
INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at, thread_id)
SELECT 'busy', %[1]d + n, 'r' || n, 'ann', 'text', now(), 'm' || n %% 7 FROM generate_series(1, %[1]d) n;
INSERT INTO chat.pins (conversation_id, message_id, version, pinned_by, pinned_at)
SELECT 'busy', 'm' || n, 3 * %[1]d + n, 'ann', now() FROM generate_series(1, 100) n;
INSERT INTO chat.pins (conversation_id, message_id, version, pinned_by, pinned_at)
SELECT 'c' || n, 'm', n, 'ann', now() FROM generate_series(1, %[2]d) n;
INSERT INTO chat.edits (conversation_id, message_id, version, body, edited_at)
SELECT 'busy', 'm5', %[1]d + n, 'edited', now() FROM generate_series(1, %[1]d) n;
ANALYZE chat.conversations, chat.conversation_members, chat.messages, chat.edits, chat.pins`, messages, conversations, members),
		pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	one := func(from, to int64) []any { return []any{[]int64{from}, []int64{to}} }
	history := func(ranges []any, readable []any) []any {
		return slices.Concat([]any{"busy"}, readable, []any{201, store.MaxPageBytes}, ranges, []any{""})
	}
	thread := slices.Concat([]any{"busy"}, one(1, math.MaxInt64), []any{201, store.MaxPageBytes}, one(1, math.MaxInt64), []any{"m7"})
	pins := slices.Concat([]any{"busy"}, one(1, math.MaxInt64), []any{101, store.MaxPageBytes, int64(math.MaxInt64)})
	edits := slices.Concat([]any{"busy", "m5"}, one(1, math.MaxInt64), []any{int64(messages + 200), 51, store.MaxPageBytes})
	var often, until []int64 // the ranges of a user who joined and left 16 times, without a message in any range
	for n := range int64(16) {
		often, until = append(often, 100_000+10*n), append(until, 100_001+10*n)
	}
	for name, test := range map[string]struct {
		statement string
		args      []any
		most      int
	}{
		// These statements read at most 201 messages of each range, and the newest text and the pin of each message.
		"the newest messages":         {store.SQLNewest, history(one(1, messages+1), one(1, messages+1)), 402},
		"a thread":                    {store.SQLNewest, thread, 402},
		"the pinned messages":         {store.SQLPins, pins, 301},
		"edits in the middle":         {store.SQLEdits, edits, 60},
		"the oldest messages":         {store.SQLOldest, history(one(1, messages+1), one(1, messages+1)), 402},
		"messages in the middle":      {store.SQLNewest, history(one(1, messages/2), one(1, messages+1)), 402},
		"a user who left early":       {store.SQLNewest, history(one(1, 1000), one(1, 1000)), 402},
		"a user who joined often":     {store.SQLNewest, history([]any{often, until}, []any{often, until}), 402},
		"a message with 30,000 edits": {store.SQLNewest, history(one(1, 10), one(1, 10)), 402},
		"a user who joined late":      {store.SQLOldest, history(one(messages, messages+1), one(messages, messages+1)), 402},
		"a user with two long ranges": {store.SQLNewest, history([]any{[]int64{1, 900}, []int64{500, 2000}}, one(1, messages+1)), 804},
		// A member's conversations are stored by periods, which are ranges of positions. The statement SQLConversations
		// reads at most 51 small and 51 large conversations, and the other conversations in the same periods. For each
		// conversation it reads two rows: the member's row and the conversation's row.
		"a user's newest conversations":     {store.SQLConversations, []any{"ann", int64(math.MaxInt64), 51}, 800},
		"a later page of conversations":     {store.SQLConversations, []any{"ann", int64(conversations * 350), 51}, 800},
		"conversations that are all active": {store.SQLConversations, []any{"zoe", int64(math.MaxInt64), 51}, 2 * (2*256 + 51)},
		"a later page of active ones":       {store.SQLConversations, []any{"zoe", int64(3_000_000 + conversations/2), 51}, 2 * (2*256 + 51)},
		"the first members of 2,000":        {store.SQLMembers, []any{"busy", int64(0), int32(0), 51}, 60},
		"members in the middle of 2,000":    {store.SQLMembers, []any{"busy", int64(1), int32(1000), 51}, 60},
	} {
		rows, scanned := rowsRead(t, f, test.statement, test.args...)
		assert.LessOrEqual(t, rows, test.most, name)
		assert.Empty(t, scanned, name)
	}
	// All pages together must contain the whole list, with the newest conversation first.
	for user, newest := range map[string]catalog.Position{"ann": conversations * 700, "zoe": 3_000_000 + conversations} {
		count, last := 0, newest+1
		for below, more := catalog.Position(0), true; more; more = below != 0 {
			page, next, err := f.store.Conversations(t.Context(), user, below, 200)
			require.NoError(t, err)
			count, below = count+len(page), next
			if next != 0 {
				require.Less(t, next, last, user)
				last = next
			}
		}
		assert.Equal(t, conversations, count, user)
	}
}

func (f *fixture) members(id string, after store.JoinOrder, limit int) store.Members {
	f.t.Helper()
	m, err := f.store.Members(f.t.Context(), id, after, limit)
	require.NoError(f.t, err)
	return m
}

// Migrating the rows down to the schema of the first release and up again must lead to the rows that the projection
// has written.
func TestMigration_OfEarlierRowsEqualsARebuild(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.example()
	var many []string
	for n := range store.MaxSmall + 1 {
		many = append(many, fmt.Sprint("user", n))
	}
	f.happens("user0", group("large", many...))
	// Send so many messages that some positions are beyond the first period. A period of small conversations has 256
	// positions.
	f.happens("user0", group("talk", "user0", "user1"))
	for range 5 {
		f.happens("user0", slices.Repeat([]proto.Message{&chatv1.MessageSent{ConversationId: "talk",
			MessageId: "m", Body: "text"}}, 250)...)
	}
	f.happens("user0", group("late", "user0", "user2"))
	f.happens("user0", leave("large", "user3"), join("large", "user3"), leave("large", "user5"), join("large", "zed"))
	want := f.Rows()
	for _, step := range []struct{ name, part string }{
		{"00004_roles_and_threads.sql", "Down"}, {"00003_periods.sql", "Down"}, {"00002_pages.sql", "Down"},
		{"00002_pages.sql", "Up"}, {"00003_periods.sql", "Up"}, {"00004_roles_and_threads.sql", "Up"}} {
		_, err := f.Pool.Exec(t.Context(), "SET search_path = chat;"+migration(t, step.name, step.part)+";RESET search_path",
			pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err, step)
	}
	require.Equal(t, want, f.Rows())
	f.RequireRebuild()
}

// migration returns the statements of a migration in one direction, "Up" or "Down".
func migration(t *testing.T, name, direction string) string {
	t.Helper()
	raw, err := store.Migrations().(interface{ ReadFile(string) ([]byte, error) }).ReadFile(name)
	require.NoError(t, err)
	_, statements, found := strings.Cut(string(raw), "-- +goose "+direction)
	require.True(t, found)
	statements, _, _ = strings.Cut(statements, "-- +goose Down")
	return statements
}

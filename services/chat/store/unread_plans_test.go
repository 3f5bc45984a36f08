//go:build integration

package store_test

import (
	"math"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/chat/marker"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
)

// Ann is in 10,000 conversations. In half of them she has an unread message, and in the first 50 a mention. In
// "busy", 30,000 messages are unread for everyone, and 20,000 of ann's own messages follow; 10,000 messages of it are
// deleted. The number of rows that a query reads must depend on the counts, which end at 100, and not on these
// numbers.
func TestPlans_UnreadMessagesAreCountedUpToABound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.Pool.Exec(t.Context(), `
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at, member_count, large)
SELECT 'c' || n, 2, '', false, 3, n * 256, now(), 2, false FROM generate_series(1, 10000) n;
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at, member_count, large)
VALUES ('busy', 2, '', false, 60001, 3000000, now(), 2000, true);
INSERT INTO chat.conversation_members (member, conversation_id, joined_version, joined_index, large, period)
SELECT u, 'c' || n, 1, 0, false, n FROM generate_series(1, 10000) n, unnest('{ann,bob}'::text[]) u;
INSERT INTO chat.conversation_members (member, conversation_id, joined_version, joined_index, large, period)
SELECT CASE n WHEN 1 THEN 'ann' ELSE 'member' || n END, 'busy', 1, n, true, 2 FROM generate_series(1, 2000) n;
INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at)
SELECT 'c' || n, 3, 'm', 'bob', 'text', now() FROM generate_series(1, 10000) n;
INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at, deleted)
SELECT 'busy', n + 1, 'm' || n, CASE WHEN n > 40000 THEN 'ann' ELSE 'bob' END, 'text', now(), n <= 10000
FROM generate_series(1, 60000) n;
INSERT INTO chat.markers SELECT 'c' || n, 'ann', 3, 3 FROM generate_series(5001, 10000) n;
INSERT INTO chat.mentions SELECT 'c' || n, 'ann', 3, 'm', 'bob' FROM generate_series(1, 50) n;
INSERT INTO chat.mentions SELECT 'busy', '', n + 1, 'm' || n, 'bob' FROM generate_series(10001, 40000) n;
INSERT INTO chat.unread_conversations SELECT 'c' || n, 'ann', true, n <= 50 FROM generate_series(1, 5000) n;
INSERT INTO chat.unread_conversations SELECT 'd' || n, 'user' || n % 1000, true, n % 10 = 0 FROM generate_series(1, 100000) n`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	_, err = f.Pool.Exec(t.Context(), "VACUUM ANALYZE")
	require.NoError(t, err)
	for name, test := range map[string]struct {
		statement string
		args      []any
		most      int
	}{
		// 100 conversations of one row each, and the mentions with the rows that lead to them: 50 conversations of four
		// rows, and the rest of 100 mentions in "busy".
		"the totals of a user with 10,000 conversations": {store.SQLUnread, []any{"ann"}, 100 + 4*50 + 100 + 20},
		"a count in a conversation with 50,000 messages": {store.SQLMarkers, []any{"busy", "ann", marker.MaxShown}, 100 + 100 + 10},
		// 51 conversations with two rows each and their members, markers and counts, and the 100 messages of "busy".
		"a page of conversations": {store.SQLConversations, []any{"ann", int64(math.MaxInt64), 51}, 51*(2+2+1+2) + 64 + 100 + 100 + 20},
	} {
		rows, scanned := rowsRead(t, f, test.statement, test.args...)
		assert.LessOrEqual(t, rows, test.most, name)
		assert.Empty(t, scanned, name)
	}

	// A user who has sent the messages themself: only a bounded number of them is examined.
	_, err = f.Pool.Exec(t.Context(), `INSERT INTO chat.markers VALUES ('busy', 'ann', 40001, 40001)`)
	require.NoError(t, err)
	rows, scanned := rowsRead(t, f, store.SQLMarkers, "busy", "ann", marker.MaxShown)
	assert.LessOrEqual(t, rows, 1000+10)
	assert.Empty(t, scanned)

	// The statements of the projection, with the settings of a batch and with generic plans, which are used for any
	// arguments. A message or a marker in a large conversation must not read its 2,000 members, and a message in a small
	// one must not be looked up again for the members who have unread messages already.
	config := f.Pool.Config()
	for setting, value := range map[string]string{"search_path": "chat", "enable_seqscan": "off", "enable_hashjoin": "off",
		"enable_mergejoin": "off", "plan_cache_mode": "force_generic_plan"} {
		config.ConnConfig.RuntimeParams[setting] = value
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	projecting := &fixture{Log: &eventlogtest.Log{Pool: pool}}
	for name, test := range map[string]struct {
		statement, id, user string
		most                int
	}{
		"a message in a large conversation":           {store.SQLRaise, "busy", "bob", 1},
		"a marker in a large conversation":            {store.SQLRestore, "busy", "ann", 1},
		"a message in a conversation that ann reads":  {store.SQLRaise, "c6000", "bob", 10},
		"a message in a conversation with unread one": {store.SQLRaise, "c60", "bob", 10},
		"a marker in a small conversation":            {store.SQLRestore, "c6000", "ann", 10},
	} {
		rows, scanned := rowsRead(t, projecting, test.statement, []string{test.id}, []string{test.user})
		assert.LessOrEqual(t, rows, test.most, name)
		assert.Empty(t, scanned, name)
	}
}

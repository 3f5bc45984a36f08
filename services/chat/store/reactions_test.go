//go:build integration

package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/reaction"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// Users add and remove reactions at random, and messages are deleted. However the events are divided into batches, the
// counts that the store returns must be the numbers of the users that it lists, and a rebuild must lead to the same
// rows.
func TestReactions_CountsAreTheNumbersOfListedUsers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	random := rand.New(rand.NewPCG(1, 2))
	const messages = 6
	f.happens("ann", group("c", "ann", "bob"))
	states, versions := make([]*reaction.State, messages), make([]catalog.Version, messages)
	for m := range messages {
		states[m] = reaction.New("")
		f.happens("ann", &chatv1.MessageSent{ConversationId: "c", MessageId: fmt.Sprint("m", m), Body: "hi"})
	}
	deleted := map[int]bool{}
	for range 40 {
		var batch []decidetest.Event
		for range random.IntN(12) {
			m, user := random.IntN(messages), fmt.Sprint("user", random.IntN(5))
			text := []string{"👍", "🎉", ":a:"}[random.IntN(3)]
			var command proto.Message = &chatv1.AddReaction{ConversationId: "c", MessageId: fmt.Sprint("m", m), Emoji: text}
			if random.IntN(2) == 0 {
				command = &chatv1.RemoveReaction{ConversationId: "c", MessageId: fmt.Sprint("m", m), Emoji: text}
			}
			if deleted[m] {
				continue
			}
			for _, e := range decidetest.Decide(t, states[m], catalog.Origin{Actor: user}, command).Events {
				versions[m]++
				states[m].Evolve(catalog.NewFact(user, versions[m], f.Clock(), nil), e)
				batch = append(batch, decidetest.By(user, e))
			}
			if random.IntN(60) == 0 && len(deleted) < messages/2 {
				deleted[m] = true
				batch = append(batch, decidetest.By("ann", &chatv1.MessageDeleted{ConversationId: "c", MessageId: fmt.Sprint("m", m)}))
			}
		}
		if len(batch) > 0 {
			f.AppendAll(batch...)
		}
		if random.IntN(3) == 0 {
			f.CatchUp()
		}
	}
	f.CatchUp()
	require.NotEmpty(t, deleted)
	for m := range messages {
		id := fmt.Sprint("m", m)
		all, err := f.store.Reactions(t.Context(), "c", id, "", 0, 200)
		require.NoError(t, err)
		message := &chatv1.Message{MessageId: id}
		require.NoError(t, f.store.AddReactions(t.Context(), "c", "user1", []*chatv1.Message{message}))
		require.True(t, slices.IsSortedFunc(all.Reactions, func(a, b *chatv1.UserReaction) int {
			return a.ReactedAt.AsTime().Compare(b.ReactedAt.AsTime())
		}))
		listed := 0
		for _, r := range message.Reactions {
			var users []string
			for _, one := range all.Reactions {
				if one.Emoji == r.Emoji {
					users = append(users, one.UserId)
				}
			}
			listed += len(users)
			require.Len(t, users, int(r.Count), "%s %s", id, r.Emoji)
			require.Equal(t, slices.Contains(users, "user1"), r.Own, "%s %s", id, r.Emoji)
		}
		require.Equal(t, len(all.Reactions), listed, "each listed reaction is counted")
		if deleted[m] {
			require.Zero(t, all.Version)
			require.Zero(t, message.ReactionsVersion)
		} else {
			require.Equal(t, versions[m], all.Version)
			require.EqualValues(t, versions[m], message.ReactionsVersion)
		}
	}
	f.RequireRebuild()
}

// A message is deleted and sent again with the same id, and its reactions of before and after are in one batch. The
// deletion must affect only the reactions of before, however the events are divided into batches.
func TestReactions_ADeletionAffectsEarlierReactionsOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	sent := &chatv1.MessageSent{ConversationId: "c", MessageId: "m", Body: "hi"}
	reacted := func(emoji string) proto.Message {
		return &chatv1.ReactionsChanged{ConversationId: "c", MessageId: "m", Emoji: emoji, Added: true,
			Counts: []*chatv1.ReactionCount{{Emoji: emoji, Count: 1}}, ActorEmojis: []string{emoji}}
	}
	f.happens("ann", group("c", "ann", "bob"), sent, reacted("👍"),
		&chatv1.MessageDeleted{ConversationId: "c", MessageId: "m"}, sent, reacted("🎉"))
	all, err := f.store.Reactions(t.Context(), "c", "m", "", 0, 9)
	require.NoError(t, err)
	require.Len(t, all.Reactions, 1)
	require.Equal(t, "🎉", all.Reactions[0].Emoji)
	f.RequireRebuild()
}

// The number of rows that a page needs must not depend on the number of users who have reacted.
func TestPlans_ReactionsReadRowsOfAPageOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.Pool.Exec(t.Context(), `
INSERT INTO chat.conversations (conversation_id, kind, title, history_from_joining, version, position, newest_at)
VALUES ('c', 2, '', false, 9, 9, now());
INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at)
SELECT 'c', n, 'm' || n, 'ann', 'text', now() FROM generate_series(1, 20000) n;
INSERT INTO chat.reaction_counts (conversation_id, message_id, version, position, emojis, counts)
SELECT 'c', 'm' || n, 1, 1, '{a,b}', '{1000,1000}' FROM generate_series(1, 20000) n;
INSERT INTO chat.reactions (conversation_id, message_id, member, emoji, version, position, reacted_at)
SELECT 'c', 'm' || n % 20, 'user' || n / 20, CASE WHEN n % 1000 < 20 THEN 'b' ELSE 'a' END, n, n, now() FROM generate_series(1, 40000) n;
ANALYZE chat.conversations, chat.messages, chat.reaction_counts, chat.reactions`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	ids := make([]string, 200)
	for i := range ids {
		ids[i] = fmt.Sprint("m", i+1)
	}
	for name, test := range map[string]struct {
		statement string
		args      []any
		rows      int
	}{
		"the reactions to 200 messages": {store.SQLReactionsOf, []any{"c", ids, "user7"}, 400},
		"all reactions to a message":    {store.SQLReactions, []any{"c", "m7", "", 20_000, 51}, 54},
		"one reaction to a message":     {store.SQLReactions, []any{"c", "m7", "b", 20_000, 11}, 14},
	} {
		rows, scanned := rowsRead(t, f, test.statement, test.args...)
		assert.LessOrEqual(t, rows, test.rows, name)
		assert.NotContains(t, scanned, "reactions", name)
	}
}

//go:build integration

package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/client"
)

// reactionsOf returns the reactions to the messages of a conversation, as a person reads them: "2 👍 own".
func (p *person) reactionsOf(conversation string) (all []string) {
	p.t.Helper()
	var page struct {
		Messages []struct {
			Reactions []struct {
				Emoji string
				Count int
				Own   bool
			}
		}
	}
	require.NoError(p.t, p.ask("chat.history", map[string]any{"conversation_id": conversation}, &page))
	for _, m := range page.Messages {
		for _, r := range m.Reactions {
			text := fmt.Sprint(r.Count, " ", r.Emoji)
			if r.Own {
				text += " own"
			}
			all = append(all, text)
		}
	}
	return all
}

// ownReactions returns the reactions of the event's actor to the message.
func ownReactions(t *testing.T, e client.Event) []string {
	t.Helper()
	var data struct {
		Own []string `json:"actor_emojis"`
	}
	require.NoError(t, json.Unmarshal(e.Data, &data))
	return data.Own
}

// Members react to a message. All members must see it live, also after a reconnect, until the message is deleted.
func testReactions(t *testing.T, m *mesh) {
	alice, bob, eve := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1), m.connect(t, someone("eve"), 1)
	phone := m.connect(t, bob.id, 0)
	started := alice.do("chat.start_group", map[string]any{"title": "reactions", "user_ids": []string{bob.id}})
	conversation := conversationOf(started)
	sent := alice.do("chat.send_message", map[string]any{"conversation_id": conversation, "body": "hi"})
	message := field(alice.awaitVersion(sent.Stream, sent.Version), "message_id")
	on := func(emoji string) map[string]any {
		return map[string]any{"conversation_id": conversation, "message_id": message, "emoji": emoji}
	}

	first := bob.do("chat.add_reaction", on("👍"))
	require.Equal(t, "reactions:"+conversation+":"+message, first.Stream)
	seen := alice.awaitVersion(first.Stream, 1)
	require.Equal(t, bob.id, seen.Actor)
	require.Equal(t, "👍", field(seen, "emoji"))
	phone.awaitVersion(first.Stream, 1)
	require.Equal(t, "unchanged", bob.do("chat.add_reaction", on("👍")).Kind)
	require.Equal(t, []string{"1 👍 own"}, bob.reactionsOf(conversation), "a user reads what they have written")
	eve.refused("not_a_member", "chat.add_reaction", on("👍"))
	bob.refused("invalid_field", "chat.add_reaction", on("thumbs up"))
	bob.refused("not_found", "chat.add_reaction", map[string]any{"conversation_id": conversation, "message_id": "none", "emoji": "👍"})

	phone.drop()
	bob.do("chat.add_reaction", on("🎉"))
	newest := alice.do("chat.add_reaction", on("👍"))
	phone.resume(m, 1)
	phone.awaitVersion(first.Stream, newest.Version)
	own := phone.await("the event of the other device", func(e client.Event) bool {
		return e.Stream == first.Stream && e.Actor == bob.id && e.Version == newest.Version-1
	})
	require.Equal(t, []string{"👍", "🎉"}, ownReactions(t, own))
	require.Equal(t, []string{"2 👍 own", "1 🎉"}, alice.reactionsOf(conversation))

	alice.do("chat.delete_message", map[string]any{"conversation_id": conversation, "message_id": message})
	bob.refused("message_deleted", "chat.add_reaction", on("🚀"))
	require.Empty(t, alice.reactionsOf(conversation))
	var list struct{ Reactions []any }
	require.NoError(t, alice.ask("chat.reactions", map[string]any{"conversation_id": conversation, "message_id": message}, &list))
	require.Empty(t, list.Reactions)
	require.Equal(t, "not_a_member", codeOf(eve.ask("chat.reactions", map[string]any{"conversation_id": conversation, "message_id": message}, &list)))
	require.Empty(t, eve.versions(first.Stream))
}

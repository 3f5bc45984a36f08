//go:build integration

package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// found is the answer to chat.search.
type found struct {
	Messages []struct {
		ConversationID string `json:"conversation_id"`
		Message        struct {
			Body string `json:"body"`
		} `json:"message"`
		Excerpt []struct {
			Text  string `json:"text"`
			Match bool   `json:"match"`
		} `json:"excerpt"`
	} `json:"messages"`
	Next string `json:"next"`
}

// A user finds a message at once after it was acknowledged. A member who has left finds the earlier messages only.
func testSearchFindsWhatMembersRead(t *testing.T, m *mesh) {
	owner, member := m.connect(t, someone("owner"), 0), m.connect(t, someone("member"), 1)
	id := conversationOf(owner.do("chat.start_group", map[string]any{"title": "exam", "user_ids": []string{member.id}}))
	owner.do("chat.send_message", map[string]any{"conversation_id": id, "body": "The exam is on Monday."})
	search := func(p *person, filters map[string]any) found {
		t.Helper()
		var got found
		filters["text"] = "mond"
		require.NoError(t, p.ask("chat.search", filters, &got))
		return got
	}
	got := search(owner, map[string]any{})
	require.Len(t, got.Messages, 1)
	require.Equal(t, id, got.Messages[0].ConversationID)
	require.Equal(t, "Monday", got.Messages[0].Excerpt[1].Text)
	require.True(t, got.Messages[0].Excerpt[1].Match)
	member.do("chat.leave", map[string]any{"conversation_id": id})
	owner.do("chat.send_message", map[string]any{"conversation_id": id, "body": "Or on another Monday."})
	require.Len(t, search(owner, map[string]any{}).Messages, 2)
	require.Len(t, search(member, map[string]any{}).Messages, 1)
	hour := func(hours time.Duration) string { return time.Now().Add(hours * time.Hour).UTC().Format(time.RFC3339) }
	require.Len(t, search(owner, map[string]any{"sent_after": hour(-1), "sent_before": hour(1)}).Messages, 2)
	require.Empty(t, search(owner, map[string]any{"sent_after": hour(1)}).Messages)
	require.Empty(t, search(owner, map[string]any{"author": member.id}).Messages)
	require.Equal(t, "invalid_field", codeOf(owner.ask("chat.search", map[string]any{"text": " "}, &got)))
	require.Equal(t, "not_a_member", codeOf(m.connect(t, someone("eve"), 0).ask("chat.search",
		map[string]any{"text": "monday", "conversation_id": id}, &got)))
}

//go:build integration

package edumatrix

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/client"
)

// Users can have the ids that common identity providers use (the claim sub of a token). Some of these ids contain
// colons, bars or plus signs.
func TestUsers_MayHaveAnyIDOfAnIdentityProvider(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	for _, pair := range [][2]string{
		{"auth0|5f7c8ec7c33c6c004bbafe82", "f:550e8400-e29b-41d4-a716-446655440000:bob"},
		{"a+b@school.example", strings.Repeat("x:", 127) + "x"},
	} {
		one, other := pair[0], pair[1]
		seen := make(chan client.Event, 64)
		otherConn := dial(t, c, other, func(e client.Event) { seen <- e })
		await := func(what string, wanted func(client.Event) bool) client.Event {
			t.Helper()
			for late := time.After(30 * time.Second); ; {
				select {
				case e := <-seen:
					if wanted(e) {
						return e
					}
				case <-late:
					t.Fatalf("%s did not get %s", other, what)
				}
			}
		}

		room := catalog.Address("presence", one)
		_, err := otherConn.Subscribe(t.Context(), room)
		require.NoError(t, err)
		oneConn := dial(t, c, one, nil)
		await("presence", func(e client.Event) bool { return e.Type == "presence.came_online" && e.Stream == room })

		// Each user starts a direct conversation with the other. Both must get the same conversation.
		started, err := oneConn.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": other})
		require.NoError(t, err)
		again, err := otherConn.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": one})
		require.NoError(t, err)
		require.Equal(t, started.Stream, again.Stream)
		conversation := strings.TrimPrefix(started.Stream, "conversation:")
		_, err = oneConn.Command(t.Context(), "chat.send_message",
			map[string]string{"conversation_id": conversation, "body": "hello"})
		require.NoError(t, err)
		message := await("the message", func(e client.Event) bool { return e.Type == "chat.message_sent" })
		require.Equal(t, one, message.Actor)
		var history struct {
			Messages []struct{ Author, Body string }
		}
		require.NoError(t, otherConn.Query(t.Context(), "chat.history", map[string]any{"conversation_id": conversation}, &history))
		require.Len(t, history.Messages, 1)
		require.Equal(t, one, history.Messages[0].Author)

		// The other user is added to a group and must get a notification.
		_, err = oneConn.Command(t.Context(), "chat.start_group", map[string]any{"title": "g", "user_ids": []string{other}})
		require.NoError(t, err)
		raised := await("a notification", func(e client.Event) bool { return e.Type == "notification.raised" })
		require.Equal(t, catalog.Address("notifications", other), raised.Stream)
		var data map[string]any
		require.NoError(t, json.Unmarshal(raised.Data, &data))
		require.Equal(t, other, data["recipient_id"])

		var sessions struct{ Sessions []map[string]any }
		require.NoError(t, oneConn.Query(t.Context(), "presence.sessions", map[string]any{}, &sessions))
		require.Len(t, sessions.Sessions, 1)
	}
}

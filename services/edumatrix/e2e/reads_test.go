//go:build integration

package e2e

import (
	"context"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// TestHistory_HasMessagesAcknowledgedBeforeTheConnection blocks updates of chat's projection. Then a message is
// acknowledged on one connection. The answer to a later query, on a new connection or over HTTP, must contain this
// message. While updates are blocked, the query must therefore fail as unavailable.
func TestHistory_HasMessagesAcknowledgedBeforeTheConnection(t *testing.T) {
	t.Parallel()
	database := meshtest.Postgres(t)
	m := embedded(t, "DATABASE_URL="+database)
	alice := someone("alice")
	first := m.connect(t, alice, 0)
	conversation := conversationOf(first.do("chat.start_direct", map[string]any{"user_id": someone("bob")}))
	asked := map[string]any{"conversation_id": conversation}
	// Wait until the projection has applied all events so far: only then does this query return.
	require.NoError(t, first.ask("chat.history", asked, &history{}))

	release := stall(t, database)
	first.do("chat.send_message", map[string]any{"conversation_id": conversation, "body": "acknowledged"})
	first.Close()
	second := m.connect(t, alice, 0)
	var page history
	require.Equal(t, "unavailable", codeOf(second.ask("chat.history", asked, &page)), "%+v", page)
	status, answer := m.post(t, alice, "/api/chat.history", asked)
	require.Equal(t, http.StatusServiceUnavailable, status, answer)

	release()
	eventually(t, "the history can be read", func() bool {
		err := second.ask("chat.history", asked, &page)
		return err == nil || codeOf(err) != "unavailable"
	})
	require.Len(t, page.Messages, 1)
	require.Equal(t, "acknowledged", page.Messages[0].Body)
}

// stall blocks updates of chat's projection until the returned function is called.
func stall(t *testing.T, database string) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SELECT FROM chat.projections FOR UPDATE")
	require.NoError(t, err)
	return func() { require.NoError(t, tx.Rollback(t.Context())) }
}

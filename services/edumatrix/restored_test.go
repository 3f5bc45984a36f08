//go:build integration

package edumatrix

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// TestRestored_ClientsReconnectAndContinue begins a new incarnation of chat's log while a client is connected. The
// connection must be closed with a code after which clients reconnect. On a new connection, the user must be able to
// continue the conversation.
func TestRestored_ClientsReconnectAndContinue(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o, alice := operatorOf(t, c), "alice-"+uuid.NewString()[:8]
	connection := dial(t, c, alice, nil)
	before, err := connection.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": "bob"})
	require.NoError(t, err)
	out := o.does("restored", "chat", "--seen", "2000000")
	require.Contains(t, out, "chat has begun the incarnation")
	require.Contains(t, out, "continues above 3000000.")
	say := map[string]string{"conversation_id": strings.TrimPrefix(before.Stream, "conversation:"), "body": "after"}
	meshtest.Eventually(t, "the connection is closed", func() bool {
		_, err := connection.Command(t.Context(), "chat.send_message", say)
		return err != nil
	})
	<-connection.Done()
	require.ErrorContains(t, connection.Err(), "4005", "a code after which clients reconnect")
	after, err := dial(t, c, alice, nil).Command(t.Context(), "chat.send_message", say)
	require.NoError(t, err)
	require.Greater(t, after.Version, before.Version)
	require.Contains(t, o.does("log", "show", before.Stream), "after")

	for _, wrong := range [][]string{{"restored"}, {"restored", "chat", "feed"}, {"restored", "chat", "--seen", "-1"}} {
		status, _, _ := o.run(wrong...)
		require.Equal(t, 2, status, "%q", wrong)
	}
	status, _, complaints := o.run("restored", "presence")
	require.Equal(t, 1, status)
	require.Contains(t, complaints, "owns no log")
}

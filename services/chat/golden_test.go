//go:build integration

package chat_test

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1/chatv1connect"
	"github.com/edumatrix/interlinked/proto/golden"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

var update = flag.Bool("update", false, "store the answers of this release, if they are not stored yet")

// The stored samples of a conversation's events must still be applied: by the aggregate, by the projection, and by a
// rebuild. Each field of an answer that a release has stored must still have the same value; answers may get more fields.
func TestGolden_EventsOfEarlierReleasesAreApplied(t *testing.T) {
	t.Parallel()
	declared, err := catalog.Load()
	require.NoError(t, err)
	events, err := golden.History(declared, "1", "conversation")
	require.NoError(t, err)
	require.NotEmpty(t, events)
	state := conversation.New("conversation:conversation")
	l := eventlogtest.Open(t, "chat", store.Migrations())
	client, url := l.Serve(query.Projections, func(o ...connect.HandlerOption) (string, http.Handler) {
		return chatv1connect.NewChatServiceHandler(query.New(l.Log, store.New(l.Pool)), o...)
	})
	l.Follow(store.DeclareConversations())
	for _, e := range events {
		decidetest.Evolve(t, state, "conversation:conversation", decidetest.By("user2", e))
		l.Append("user2", e)
	}
	l.RequireRebuild()
	send := &chatv1.SendMessage{ConversationId: "conversation", Body: "hi", MentionedUserIds: []string{"user", "user2"}}
	sent := decidetest.Decide(t, state, decidetest.Origin("user2"), send)
	require.Len(t, sent.Events, 1, "user2 is still a member")
	require.Equal(t, []string{"user2"}, sent.Events[0].(*chatv1.MessageSent).MentionedUserIds, "user has left")

	chat := chatv1connect.NewChatServiceClient(client, url)
	answers := map[string]any{}
	note := func(query string, m proto.Message, err error) {
		t.Helper()
		require.NoError(t, err)
		raw, err := wirejson.Marshal(m)
		require.NoError(t, err)
		var answer any
		require.NoError(t, json.Unmarshal(raw, &answer))
		answers[query] = withoutTimes(answer)
	}
	conversations, err := eventlogtest.Ask(l.As("user2"), chat.Conversations, &chatv1.ConversationsRequest{})
	note("chat.conversations", conversations, err)
	members, err := eventlogtest.Ask(l.As("user2"), chat.Members, &chatv1.MembersRequest{ConversationId: "conversation"})
	note("chat.members", members, err)
	history, err := eventlogtest.Ask(l.As("user2"), chat.History, &chatv1.HistoryRequest{ConversationId: "conversation",
		ThreadId: "thread"})
	note("chat.history", history, err)

	file := filepath.Join("testdata", "answers-1.json")
	if _, err := os.Stat(file); err != nil && *update {
		raw, err := json.MarshalIndent(answers, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, append(raw, '\n'), 0o644))
	}
	raw, err := os.ReadFile(file)
	require.NoError(t, err, "run the test with -update")
	var want map[string]any
	require.NoError(t, json.Unmarshal(raw, &want))
	requireFields(t, "", want, answers)
}

// withoutTimes removes the fields of objects whose names end in "_at".
func withoutTimes(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if strings.HasSuffix(name, "_at") {
				delete(v, name)
			} else {
				v[name] = withoutTimes(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutTimes(v[i])
		}
	}
	return v
}

// requireFields requires that a value has all fields that another one has, with the same values.
func requireFields(t *testing.T, path string, want, got any) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		require.True(t, ok, path)
		for name := range want {
			requireFields(t, path+"."+name, want[name], object[name])
		}
	case []any:
		list, ok := got.([]any)
		require.True(t, ok && len(list) == len(want), "%s: %v", path, got)
		for i := range want {
			requireFields(t, path+"[]", want[i], list[i])
		}
	default:
		require.Equal(t, want, got, path)
	}
}

package view_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/edumatrix/view"
	"github.com/edumatrix/interlinked/shared/client"
)

func event(stream string, version int64, actor string, body proto.Message) view.Event {
	return view.Event{Event: client.Event{Stream: stream, Version: version, Actor: actor}, Body: body}
}

// Messages, reactions and markers are in different streams, so their events may arrive in any order. The answers must be
// the same in every order.
func TestApply_EventsOfDifferentStreamsInAnyOrder(t *testing.T) {
	t.Parallel()
	sent := event("conversation:c", 7, "bob", &chatv1.MessageSent{ConversationId: "c", MessageId: "m",
		MentionedUserIds: []string{"ann"}})
	reacted := event("reactions:c:m", 1, "ann", &chatv1.ReactionsChanged{ConversationId: "c", MessageId: "m", Emoji: "👍",
		Added: true, Counts: []*chatv1.ReactionCount{{Emoji: "👍", Count: 1}}, ActorEmojis: []string{"👍"}})
	read := event("marker:c:ann", 1, "ann", &chatv1.ReadMarkerMoved{ConversationId: "c", UserId: "ann", UpTo: 7})
	for _, order := range [][]view.Event{{sent, reacted, read}, {reacted, read, sent}, {read, sent, reacted}} {
		history := &view.History{UserID: "ann", ConversationID: "c"}
		list := &view.Conversations{UserID: "ann"}
		list.Response.Conversations = []*chatv1.Conversation{{ConversationId: "c", Version: 6}}
		for _, e := range order {
			require.NoError(t, history.Apply(e))
			require.NoError(t, list.Apply(e))
		}
		m := history.Response.Messages[0]
		require.True(t, proto.Equal(&chatv1.Reaction{Emoji: "👍", Count: 1, Own: true}, m.Reactions[0]), m)
		c := list.Response.Conversations[0]
		require.Zero(t, c.UnreadCount, "everything is read")
		require.Zero(t, c.MentionCount, "everything is read")
		require.EqualValues(t, 7, c.ReadUpTo)
	}
}

// The list has a second page. If the user leaves a conversation of the first page, the first conversation of the second
// page moves up, and the client has to load the list again.
func TestConversations_LeavingOnAFullPageReloads(t *testing.T) {
	t.Parallel()
	left := event("conversation:c", 7, "ann", &chatv1.MemberLeft{ConversationId: "c", UserId: "ann"})
	list := &view.Conversations{UserID: "ann"}
	list.Response.Conversations = []*chatv1.Conversation{{ConversationId: "c", Version: 6}}
	list.Response.Next = "more"
	require.ErrorIs(t, list.Apply(left), view.ErrReload)
}

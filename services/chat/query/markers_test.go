//go:build integration

package query_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/marker"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

func (f *fixture) markers(user, id string) (*chatv1.MarkersResponse, string) {
	answer, err := eventlogtest.Ask(f.As(user), f.marks.Markers, &chatv1.MarkersRequest{ConversationId: id})
	if err != nil {
		return nil, codeOf(err)
	}
	return answer, ""
}

// counts returns the unread messages and mentions of a user in a conversation, and the place of the marker.
func (f *fixture) counts(user, id string) [3]int64 {
	f.t.Helper()
	answer, code := f.markers(user, id)
	require.Empty(f.t, code)
	return [3]int64{int64(answer.GetUnreadCount()), int64(answer.GetMentionCount()), answer.GetReadUpTo()}
}

func (f *fixture) totals(user string) [2]int32 {
	f.t.Helper()
	answer, err := eventlogtest.Ask(f.As(user), f.marks.Unread, &chatv1.UnreadRequest{})
	require.NoError(f.t, err)
	return [2]int32{answer.GetConversationCount(), answer.GetMentionCount()}
}

// mark sends a command to the user's marker. It returns the types of the events, or the code of a refusal.
func (f *fixture) mark(user string, command proto.Message) (result []string) {
	f.t.Helper()
	outcome := eventlogtest.Decide(f.Log, marker.New, user, command)
	for _, e := range outcome.Events {
		declared, _ := f.Catalog.EventOf(e)
		result = append(result, declared.Name)
	}
	if outcome.Code != "" {
		result = append(result, outcome.Code)
	}
	return result
}

func (f *fixture) read(user, id string, upTo int64) []string {
	f.t.Helper()
	return f.mark(user, &chatv1.MarkRead{ConversationId: id, UpTo: upTo})
}

func mentioning(id, author, message string, all bool, users ...string) decidetest.Event {
	return decidetest.By(author, &chatv1.MessageSent{ConversationId: id, MessageId: message, Body: "hi", MentionedUserIds: users,
		MentionsAll: all})
}

const (
	readMoved = "chat.read_marker_moved"
	seenEvent = "chat.messages_seen"
)

func TestMarkRead_MovesTheCountsOfTheReaderOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m1", "one"), // versions 1 and 2
		mentioning("c", "ann", "m2", false, "bob", "ann"), sent("c", "bob", "m3", "three")) // versions 3 and 4
	require.Equal(t, [3]int64{2, 1, 1}, f.counts("bob", "c"))
	require.Equal(t, [3]int64{1, 0, 1}, f.counts("ann", "c"), "one's own messages and mentions of oneself do not count")
	require.Equal(t, [2]int32{1, 1}, f.totals("bob"))

	require.Equal(t, []string{readMoved, seenEvent}, f.read("bob", "c", 2))
	require.Equal(t, [3]int64{1, 1, 2}, f.counts("bob", "c"))
	require.Empty(t, f.read("bob", "c", 1), "a slow device must not move the marker back")
	require.Equal(t, []string{readMoved, seenEvent}, f.read("bob", "c", 3))
	require.Equal(t, [3]int64{0, 0, 3}, f.counts("bob", "c"))
	require.Equal(t, [2]int32{0, 0}, f.totals("bob"))
	require.Equal(t, [3]int64{1, 0, 1}, f.counts("ann", "c"))
	got, _ := f.markers("ann", "c")
	require.Len(t, got.GetMarkers(), 2)
	require.True(t, proto.Equal(&chatv1.Marker{UserId: "ann"}, got.GetMarkers()[0]))
	require.True(t, proto.Equal(&chatv1.Marker{UserId: "bob", SeenUpTo: 3}, got.GetMarkers()[1]))

	require.Equal(t, []string{readMoved}, f.mark("bob", &chatv1.MarkUnread{ConversationId: "c", From: 2}))
	require.Equal(t, [3]int64{2, 1, 1}, f.counts("bob", "c"))
	require.Equal(t, [2]int32{1, 1}, f.totals("bob"))
	got, _ = f.markers("ann", "c")
	require.EqualValues(t, 3, got.GetMarkers()[1].GetSeenUpTo(), "others do not see that bob marked a message as unread")
	f.RequireRebuild()
}

// A client sends a version that no message has yet. The user must not lose the counts of later messages.
func TestMarkRead_HidesNoLaterMessage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m1", "one"))
	require.NotEmpty(t, f.read("bob", "c", math.MaxInt64))
	require.Equal(t, [3]int64{0, 0, 2}, f.counts("bob", "c"))
	f.AppendAll(mentioning("c", "ann", "m2", true))
	require.Equal(t, [3]int64{1, 1, 2}, f.counts("bob", "c"))
	for _, invalid := range []proto.Message{&chatv1.MarkRead{ConversationId: "c"}, &chatv1.MarkRead{ConversationId: "c", UpTo: -1},
		&chatv1.MarkUnread{ConversationId: "c"}, &chatv1.MarkRead{UpTo: 1}} {
		require.Equal(t, []string{refusal.InvalidField}, f.mark("bob", invalid), "%v", invalid)
	}
}

func TestUnread_CountsEndAt100(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	all := []decidetest.Event{started("c", false, "ann", "bob")}
	for n := range 150 {
		all = append(all, mentioning("c", "ann", fmt.Sprint("m", n), false, "bob")) // versions 2 to 151
	}
	for n := range 120 {
		id := fmt.Sprint("d", n)
		all = append(all, started(id, false, "ann", "bob"), sent(id, "ann", "m", "hi"))
	}
	f.AppendAll(all...)
	require.Equal(t, [3]int64{100, 100, 1}, f.counts("bob", "c"))
	require.Equal(t, [2]int32{100, 100}, f.totals("bob"))
	f.read("bob", "c", 52)
	require.Equal(t, [3]int64{99, 99, 52}, f.counts("bob", "c"))
	require.Equal(t, [2]int32{100, 99}, f.totals("bob"))
	for n := range 100 {
		f.read("bob", fmt.Sprint("d", n), 2)
	}
	require.Equal(t, [2]int32{21, 99}, f.totals("bob"))
}

// A user sends more messages than are examined, and then others answer. The count of others is not affected, and the
// count of the sender begins to be right again when the sender moves the marker.
func TestUnread_ExaminesABoundedNumberOfOnesOwnMessages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	all := []decidetest.Event{started("c", false, "ann", "bob"), sent("c", "bob", "m", "hi")}
	for n := range 1000 {
		all = append(all, sent("c", "ann", fmt.Sprint("m", n), "hi")) // versions 3 to 1,002
	}
	f.AppendAll(append(all, sent("c", "bob", "last", "hi"))...)
	require.Equal(t, [3]int64{1, 0, 1}, f.counts("ann", "c"))
	require.Equal(t, [3]int64{100, 0, 1}, f.counts("bob", "c"))
	f.read("ann", "c", 2)
	require.Equal(t, [3]int64{0, 0, 2}, f.counts("ann", "c"), "the answer is behind 1,000 of ann's own messages")
	f.read("ann", "c", 3)
	require.Equal(t, [3]int64{1, 0, 3}, f.counts("ann", "c"))
	require.Equal(t, [2]int32{1, 0}, f.totals("ann"))
	f.RequireRebuild()
}

// A user joins a conversation with messages, leaves it, and joins again. Messages from before joining never count, and
// count for nobody who has left.
func TestUnread_BeginsWithJoining(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann"), mentioning("c", "ann", "m1", true), added("c", "bob"), // versions 1 to 3
		sent("c", "ann", "m2", "two"))
	require.Equal(t, [3]int64{1, 0, 3}, f.counts("bob", "c"))
	require.Empty(t, f.read("bob", "c", 2), "what was sent before joining is read already")
	require.Equal(t, []string{readMoved, seenEvent}, f.read("bob", "c", 4))
	f.AppendAll(left("c", "bob"), sent("c", "ann", "m3", "three")) // versions 5 and 6
	_, code := f.markers("bob", "c")
	require.Equal(t, refusal.NotAMember, code)
	require.Equal(t, [2]int32{}, f.totals("bob"))
	f.AppendAll(added("c", "bob"), sent("c", "ann", "m4", "four")) // versions 7 and 8
	require.Equal(t, [3]int64{1, 0, 7}, f.counts("bob", "c"))
	require.Equal(t, []string{readMoved, seenEvent}, f.read("bob", "c", 8))
	require.Equal(t, []string{readMoved}, f.mark("bob", &chatv1.MarkUnread{ConversationId: "c", From: 2}))
	require.Equal(t, [3]int64{1, 0, 7}, f.counts("bob", "c"), "the marker goes back to the version of joining at most")
	f.RequireRebuild()
}

// A message is sent in a thread and edited, and messages are deleted. Only mentions count in threads. The newest text
// of a message decides whom the message mentions.
func TestUnread_FollowsThreadsEditsAndDeletions(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	reply := decidetest.By("ann", &chatv1.MessageSent{ConversationId: "c", MessageId: "r", ThreadId: "m1",
		MentionedUserIds: []string{"bob"}})
	edit := func(message string, all bool, users ...string) decidetest.Event {
		return decidetest.By("ann", &chatv1.MessageEdited{ConversationId: "c", MessageId: message, Body: "new", MentionsAll: all,
			MentionedUserIds: users})
	}
	f.AppendAll(started("c", false, "ann", "bob", "cid"), sent("c", "ann", "m1", "one"), reply)
	require.Equal(t, [3]int64{1, 1, 1}, f.counts("bob", "c"))
	require.Equal(t, [3]int64{1, 0, 1}, f.counts("cid", "c"))
	f.AppendAll(edit("r", false, "cid"), edit("m1", true, "bob"))
	require.Equal(t, [3]int64{1, 1, 1}, f.counts("bob", "c"), "m1 mentions bob once, although it mentions all members too")
	require.Equal(t, [3]int64{1, 2, 1}, f.counts("cid", "c"))
	require.Equal(t, [3]int64{0, 0, 1}, f.counts("ann", "c"))
	require.Equal(t, [2]int32{1, 2}, f.totals("cid"))
	f.AppendAll(deleted("c", "ann", "m1"))
	require.Equal(t, [3]int64{0, 1, 1}, f.counts("cid", "c"))
	require.Equal(t, [2]int32{0, 1}, f.totals("cid"))
	require.Equal(t, [2]int32{0, 0}, f.totals("bob"))
	f.AppendAll(deleted("c", "ann", "r"))
	require.Equal(t, [2]int32{0, 0}, f.totals("cid"))
	f.RequireRebuild()
}

func TestMarkers_AreShownInSmallConversationsToMembersOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	users := []string{"ann"}
	for n := range marker.MaxShown - 1 {
		users = append(users, fmt.Sprint("user", n))
	}
	f.AppendAll(started("c", false, users...), sent("c", "ann", "m1", "one"))
	require.Equal(t, []string{readMoved, seenEvent}, f.read("user7", "c", 2))
	f.AppendAll(added("c", "zoe"), sent("c", "ann", "m2", "two")) // versions 3 and 4
	require.Equal(t, []string{readMoved}, f.read("user7", "c", 4), "33 members")
	got, _ := f.markers("user8", "c")
	require.Empty(t, got.GetMarkers())
	require.EqualValues(t, 2, got.GetUnreadCount())
	f.AppendAll(left("c", "zoe"), sent("c", "ann", "m3", "three")) // versions 5 and 6
	got, _ = f.markers("user8", "c")
	require.Len(t, got.GetMarkers(), marker.MaxShown)
	require.True(t, proto.Equal(&chatv1.Marker{UserId: "user7", SeenUpTo: 4}, got.GetMarkers()[8]), "%v", got.GetMarkers())
	require.EqualValues(t, 6, got.GetVersion())
	require.Equal(t, []string{readMoved, seenEvent}, f.read("user7", "c", 6))

	for _, user := range []string{"zoe", "eve"} { // a user who has left, and a stranger
		_, known := f.markers(user, "c")
		_, unknown := f.markers(user, "none")
		require.Equal(t, refusal.NotAMember, known)
		require.Equal(t, known, unknown)
	}
}

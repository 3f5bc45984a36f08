//go:build integration

package query_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// do sends a command, which must be committed, and returns its last event.
func (f *fixture) do(user string, command proto.Message) proto.Message {
	f.t.Helper()
	outcome := eventlogtest.Decide(f.Log, conversation.New, user, command)
	require.Empty(f.t, outcome.Code)
	require.NotEmpty(f.t, outcome.Events, "%T changes nothing", command)
	return outcome.Events[len(outcome.Events)-1]
}

// send sends a message and returns its id.
func (f *fixture) send(user, id, body, replyTo string, inThread bool) string {
	f.t.Helper()
	command := &chatv1.SendMessage{ConversationId: id, Body: body, InThread: inThread}
	if replyTo != "" {
		command.ReplyTo = &replyTo
	}
	return f.do(user, command).(*chatv1.MessageSent).MessageId
}

// messages returns the texts of a thread, or of the messages that belong to no thread, and the messages by their texts.
func (f *fixture) messages(user, id, thread string) (texts []string, byText map[string]*chatv1.Message) {
	f.t.Helper()
	got, err := f.history(user, &chatv1.HistoryRequest{ConversationId: id, ThreadId: thread})
	require.NoError(f.t, err)
	byText = map[string]*chatv1.Message{}
	for _, m := range got.GetMessages() {
		texts, byText[m.GetBody()] = append(texts, m.GetBody()), m
	}
	return texts, byText
}

func TestHistory_OfThreads(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob", "cid"))
	question := f.send("ann", "c", "question", "", false)
	first := f.send("bob", "c", "first answer", question, true)
	f.send("cid", "c", "second answer", first, true)
	f.send("cid", "c", "quote", question, false)

	texts, main := f.messages("ann", "c", "")
	require.Equal(t, []string{"question", "quote"}, texts)
	require.EqualValues(t, 2, main["question"].ReplyCount)
	require.Equal(t, "cid", main["question"].LastReplyBy)
	require.Equal(t, question, main["quote"].ReplyTo)
	texts, thread := f.messages("ann", "c", question)
	require.Equal(t, []string{"first answer", "second answer"}, texts)
	require.Equal(t, first, thread["second answer"].ReplyTo)
	require.Equal(t, question, thread["second answer"].ThreadId)
	require.Equal(t, thread["second answer"].SentAt.AsTime(), main["question"].LastReplyAt.AsTime())

	f.AppendAll(left("c", "cid"))
	f.do("bob", &chatv1.DeleteMessage{ConversationId: "c", MessageId: first})
	_, main = f.messages("ann", "c", "")
	require.EqualValues(t, 1, main["question"].ReplyCount, "after an answer was deleted")
	require.Equal(t, "cid", main["question"].LastReplyBy)
	_, main = f.messages("cid", "c", "")
	require.Zero(t, main["question"].ReplyCount, "cid has left and must not see how a thread goes on")
	require.Nil(t, main["question"].LastReplyAt)
	f.RequireRebuild()
}

func TestEdits_ShowsTheTextsThatAReaderMaySee(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	edits := func(user, id, message string) (texts []string, code string) {
		got, err := eventlogtest.Ask(f.As(user), f.chat.Edits, &chatv1.EditsRequest{ConversationId: id, MessageId: message})
		if err != nil {
			return nil, codeOf(err)
		}
		for _, e := range got.GetEdits() {
			texts = append(texts, e.GetBody())
		}
		return texts, ""
	}
	f.AppendAll(started("c", false, "ann", "bob", "cid"), started("late", true, "ann", "bob"),
		sent("c", "ann", "m", "one"), edited("c", "ann", "m", "two"), left("c", "cid"), edited("c", "ann", "m", "three"),
		sent("late", "ann", "n", "one"), added("late", "cid"), edited("late", "ann", "n", "two"))
	texts, _ := edits("bob", "c", "m")
	require.Equal(t, []string{"one", "two", "three"}, texts)
	texts, _ = edits("cid", "c", "m")
	require.Equal(t, []string{"one", "two"}, texts, "cid left before the last edit")
	texts, _ = edits("bob", "late", "n")
	require.Equal(t, []string{"one", "two"}, texts)
	for _, refused := range []struct{ user, id, message, code string }{
		{"cid", "late", "n", refusal.NotFound}, // cid joined after the message was sent
		{"bob", "c", "n", refusal.NotFound}, {"eve", "c", "m", refusal.NotAMember}, {"bob", "none", "m", refusal.NotAMember},
	} {
		_, code := edits(refused.user, refused.id, refused.message)
		require.Equal(t, refused.code, code, "%+v", refused)
	}
	f.AppendAll(deleted("c", "ann", "m"))
	for _, user := range []string{"bob", "cid"} {
		texts, code := edits(user, "c", "m")
		require.Empty(t, texts, "the message is deleted")
		require.Empty(t, code)
	}
}

// The texts of a message with many long edits are read page by page. All pages together must contain each text once.
func TestEdits_Pages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	events := []decidetest.Event{started("c", false, "ann"), sent("c", "ann", "m", "0")}
	for n := range 119 {
		events = append(events, edited("c", "ann", "m", strings.Repeat(fmt.Sprintf("%03d ", n+1), 2000)))
	}
	f.AppendAll(events...)
	for _, limit := range []int32{7, 200} {
		var all []*chatv1.Edit
		for after := ""; ; {
			got, err := eventlogtest.Ask(f.As("ann"), f.chat.Edits, &chatv1.EditsRequest{ConversationId: "c", MessageId: "m",
				Limit: &limit, After: after})
			require.NoError(t, err)
			require.LessOrEqual(t, len(got.GetEdits()), min(int(limit), 70), "texts of a page, each of 8,000 bytes")
			all = append(all, got.GetEdits()...)
			if after = got.GetNext(); after == "" {
				break
			}
		}
		require.Len(t, all, 120)
		for n, e := range all {
			require.EqualValues(t, n+2, e.GetVersion())
		}
	}
}

// An event of an earlier release may have a text that is larger than a page. A page must contain it alone.
func TestPins_ATextThatIsLargerThanAPage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	pin := func(message string) decidetest.Event {
		return decidetest.By("ann", &chatv1.MessagePinned{ConversationId: "c", MessageId: message})
	}
	f.AppendAll(started("c", false, "ann"), sent("c", "ann", "m", "small"), sent("c", "ann", "n", strings.Repeat("x", 600_000)),
		edited("c", "ann", "n", strings.Repeat("y", 600_000)), pin("m"), pin("n"))
	var pinned, texts []string
	for after, pages := "", 0; pages == 0 || after != ""; pages++ {
		got, err := eventlogtest.Ask(f.As("ann"), f.chat.Pins, &chatv1.PinsRequest{ConversationId: "c", After: after})
		require.NoError(t, err)
		require.Len(t, got.GetPins(), 1)
		pinned, after = append(pinned, got.GetPins()[0].GetMessage().GetMessageId()), got.GetNext()
	}
	require.Equal(t, []string{"n", "m"}, pinned)
	for after, pages := "", 0; pages == 0 || after != ""; pages++ {
		got, err := eventlogtest.Ask(f.As("ann"), f.chat.Edits, &chatv1.EditsRequest{ConversationId: "c", MessageId: "n", After: after})
		require.NoError(t, err)
		require.Len(t, got.GetEdits(), 1)
		texts, after = append(texts, got.GetEdits()[0].GetBody()[:1]), got.GetNext()
	}
	require.Equal(t, []string{"x", "y"}, texts)
}

func TestPins_OnlyMembersGetThem(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	pins := func(user, id, after string, limit int32) (texts []string, next, code string) {
		got, err := eventlogtest.Ask(f.As(user), f.chat.Pins, &chatv1.PinsRequest{ConversationId: id, After: after, Limit: asked(limit)})
		if err != nil {
			return nil, "", codeOf(err)
		}
		for _, p := range got.GetPins() {
			require.True(t, p.GetMessage().GetPinned())
			texts = append(texts, p.GetMessage().GetBody()+" by "+p.GetPinnedBy())
		}
		return texts, got.GetNext(), ""
	}
	f.AppendAll(started("c", true, "ann", "bob", "cid"))
	var ids []string
	for n := range 3 {
		ids = append(ids, f.send("bob", "c", fmt.Sprint("message ", n), "", false))
	}
	for _, n := range []int{1, 0, 2} {
		f.do("ann", &chatv1.PinMessage{ConversationId: "c", MessageId: ids[n]})
	}
	f.do("bob", &chatv1.EditMessage{ConversationId: "c", MessageId: ids[0], Body: "message zero"})
	texts, next, _ := pins("bob", "c", "", 2)
	require.Equal(t, []string{"message 2 by ann", "message zero by ann"}, texts, "the one that was pinned last comes first")
	texts, next, _ = pins("bob", "c", next, 2)
	require.Equal(t, []string{"message 1 by ann"}, texts)
	require.Empty(t, next)
	f.do("ann", &chatv1.UnpinMessage{ConversationId: "c", MessageId: ids[1]})
	f.do("bob", &chatv1.DeleteMessage{ConversationId: "c", MessageId: ids[2]})
	texts, _, _ = pins("bob", "c", "", 0)
	require.Equal(t, []string{"message zero by ann"}, texts, "after one was unpinned and one deleted")
	_, byText := f.messages("cid", "c", "")
	require.True(t, byText["message zero"].Pinned)
	require.False(t, byText["message 1"].Pinned)

	f.AppendAll(left("c", "cid"), added("c", "dan"))
	_, _, code := pins("cid", "c", "", 0)
	require.Equal(t, refusal.NotAMember, code, "cid has left")
	_, byText = f.messages("cid", "c", "")
	require.False(t, byText["message zero"].Pinned, "cid has left")
	texts, _, _ = pins("dan", "c", "", 0)
	require.Empty(t, texts, "dan joined after the message was sent, and history begins with joining")
	_, _, code = pins("eve", "c", "", 0)
	require.Equal(t, refusal.NotAMember, code)
	f.RequireRebuild()
}

func TestMembers_HaveRoles(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob", "cid"), decidetest.By("ann",
		&chatv1.ConversationStarted{ConversationId: "pair", Kind: chatv1.Kind_KIND_DIRECT, UserIds: []string{"ann", "bob"}}))
	f.do("ann", &chatv1.SetRole{ConversationId: "c", UserId: "cid", Role: chatv1.Role_ROLE_ADMIN})
	f.do("ann", &chatv1.Leave{ConversationId: "c"})
	f.do("cid", &chatv1.SetTitle{ConversationId: "c", Title: "maths"})
	f.do("cid", &chatv1.SetPicture{ConversationId: "c", Picture: "https://school.example/maths.png"})
	roles := func(id string) (all []string) {
		got, err := eventlogtest.Ask(f.As("bob"), f.chat.Members, &chatv1.MembersRequest{ConversationId: id})
		require.NoError(t, err)
		for _, m := range got.GetMembers() {
			all = append(all, m.GetUserId()+" "+m.GetRole().String())
		}
		return all
	}
	require.Equal(t, []string{"bob ROLE_MEMBER", "cid ROLE_OWNER"}, roles("c"))
	require.Equal(t, []string{"ann ROLE_UNSPECIFIED", "bob ROLE_UNSPECIFIED"}, roles("pair"))
	got, err := eventlogtest.Ask(f.As("cid"), f.chat.Conversations, &chatv1.ConversationsRequest{})
	require.NoError(t, err)
	c := got.GetConversations()[0]
	require.Equal(t, "maths https://school.example/maths.png ROLE_OWNER", c.GetTitle()+" "+c.GetPicture()+" "+c.GetRole().String())
	f.RequireRebuild()
}

package conversation_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// inThread is the event that a message was sent in the thread of another one.
func inThread(author, message, thread string) decidetest.Event {
	return decidetest.By(author, &chatv1.MessageSent{ConversationId: id, MessageId: message, ReplyTo: thread, ThreadId: thread})
}

func TestDecide_RepliesAndThreads(t *testing.T) {
	t.Parallel()
	pair := direct("ann", "bob")
	reply := func(to string, thread bool) proto.Message {
		c := &chatv1.SendMessage{ConversationId: id, Body: "yes", InThread: thread}
		if to != "" {
			c.ReplyTo = &to
		}
		return c
	}
	replied := func(to, thread string) proto.Message {
		return &chatv1.MessageSent{ConversationId: id, MessageId: decidetest.Origin("bob").NewID(), Body: "yes", ReplyTo: to,
			ThreadId: thread}
	}
	given := decidetest.Given
	threaded := given(pair, sent("ann", "m"), inThread("ann", "r", "m"))
	decidetest.Test(t, stream, conversation.New, map[string]decidetest.Case{
		"reply":                     given(pair, sent("ann", "m")).When("bob", reply("m", false)).Then(replied("m", "")),
		"reply in a thread":         given(pair, sent("ann", "m")).When("bob", reply("m", true)).Then(replied("m", "m")),
		"reply to a reply":          threaded.When("bob", reply("r", true)).Then(replied("r", "m")),
		"quote a reply":             threaded.When("bob", reply("r", false)).Then(replied("r", "")),
		"reply to an unknown":       given(pair).When("bob", reply("m", false)).Refused(refusal.NotFound),
		"reply to a deleted":        given(pair, sent("ann", "m"), deleted("ann", "m")).When("bob", reply("m", false)).Refused("message_deleted"),
		"begin a thread, deleted":   given(pair, sent("ann", "m"), deleted("ann", "m")).When("bob", reply("m", true)).Refused("message_deleted"),
		"a thread to nothing":       given(pair).When("bob", reply("", true)).Refused(refusal.InvalidField),
		"reply as a stranger":       given(pair, sent("ann", "m")).When("eve", reply("m", true)).Refused(refusal.NotAMember),
		"go on in a deleted thread": given(append(threaded[:3:3], deleted("ann", "m"))...).When("bob", reply("r", true)).Then(replied("r", "m")),
		"delete a reply": threaded.
			When("ann", &chatv1.DeleteMessage{ConversationId: id, MessageId: "r"}).
			Then(&chatv1.MessageDeleted{ConversationId: id, MessageId: "r", ThreadId: "m"}),
	})
}

func TestDecide_Mentions(t *testing.T) {
	t.Parallel()
	class := group("ann", "bob", "cid")
	send := func(all bool, users ...string) proto.Message {
		return &chatv1.SendMessage{ConversationId: id, Body: "hi", MentionedUserIds: users, MentionsAll: all}
	}
	mentions := func(actor string, all bool, users ...string) proto.Message {
		return &chatv1.MessageSent{ConversationId: id, MessageId: decidetest.Origin(actor).NewID(), Body: "hi",
			MentionedUserIds: users, MentionsAll: all}
	}
	edit := func(all bool, users ...string) proto.Message {
		return &chatv1.EditMessage{ConversationId: id, MessageId: "m", Body: "hi", MentionedUserIds: users, MentionsAll: all}
	}
	given := decidetest.Given
	decidetest.Test(t, stream, conversation.New, map[string]decidetest.Case{
		"mention": given(class).When("bob", send(false, "cid", "ann", "cid")).Then(mentions("bob", false, "cid", "ann")),
		"mention a stranger": given(class, left("cid")).When("bob", send(false, "cid", "eve", "ann")).
			Then(mentions("bob", false, "ann")),
		"mention all":                  given(class).When("ann", send(true)).Then(mentions("ann", true)),
		"mention all as an admin":      given(class, role("bob", admin, "")).When("bob", send(true)).Then(mentions("bob", true)),
		"mention all as a member":      given(class).When("bob", send(true)).Refused(refusal.NotAllowed),
		"mention all in a direct":      given(direct("ann", "bob")).When("bob", send(true)).Then(mentions("bob", true)),
		"mention all in a study group": given(studyGroup("ann", "bob")).When("bob", send(true)).Refused(refusal.NotAllowed),
		"edit mentions": given(class, sent("bob", "m")).When("bob", edit(false, "eve", "ann")).
			Then(&chatv1.MessageEdited{ConversationId: id, MessageId: "m", Body: "hi", MentionedUserIds: []string{"ann"}}),
		"edit to mention all": given(class, sent("bob", "m")).When("bob", edit(true)).Refused(refusal.NotAllowed),
		"edit to mention all as the owner": given(class, sent("ann", "m")).When("ann", edit(true)).
			Then(&chatv1.MessageEdited{ConversationId: id, MessageId: "m", Body: "hi", MentionsAll: true}),
	})
}

func TestDecide_Pins(t *testing.T) {
	t.Parallel()
	pin := &chatv1.PinMessage{ConversationId: id, MessageId: "m"}
	unpin := &chatv1.UnpinMessage{ConversationId: id, MessageId: "m"}
	pinned := &chatv1.MessagePinned{ConversationId: id, MessageId: "m"}
	unpinned := &chatv1.MessageUnpinned{ConversationId: id, MessageId: "m"}
	class := []decidetest.Event{group("ann", "bob"), sent("bob", "m")}
	pair := []decidetest.Event{direct("ann", "bob"), sent("bob", "m")}
	with := func(events []decidetest.Event, more ...decidetest.Event) decidetest.History {
		return decidetest.Given(append(events[:len(events):len(events)], more...)...)
	}
	by := decidetest.By
	full := class[:1:1]
	for n := range 100 {
		m := fmt.Sprint(n)
		full = append(full, sent("ann", m), by("ann", &chatv1.MessagePinned{ConversationId: id, MessageId: m}))
	}
	decidetest.Test(t, stream, conversation.New, map[string]decidetest.Case{
		"pin":                  with(class).When("ann", pin).Then(pinned),
		"pin again":            with(class, by("ann", pinned)).When("ann", pin).Unchanged(),
		"pin as an admin":      with(class, role("bob", admin, "")).When("bob", pin).Then(pinned),
		"pin as a member":      with(class).When("bob", pin).Refused(refusal.NotAllowed),
		"pin as a stranger":    with(class).When("eve", pin).Refused(refusal.NotAMember),
		"pin in a direct":      with(pair).When("bob", pin).Then(pinned),
		"pin an unknown":       with(class[:1]).When("ann", pin).Refused(refusal.NotFound),
		"pin a deleted":        with(class, deleted("bob", "m")).When("ann", pin).Refused("message_deleted"),
		"pin the 101st":        with(full, sent("ann", "m")).When("ann", pin).Refused("too_many_pins"),
		"pin one of 100 again": with(full).When("ann", &chatv1.PinMessage{ConversationId: id, MessageId: "99"}).Unchanged(),
		"pin after an unpin": with(full, sent("ann", "m"), by("ann", &chatv1.MessageUnpinned{ConversationId: id, MessageId: "7"})).
			When("ann", pin).Then(pinned),
		"unpin":             with(class, by("ann", pinned)).When("ann", unpin).Then(unpinned),
		"unpin again":       with(class, by("ann", pinned), by("ann", unpinned)).When("ann", unpin).Unchanged(),
		"unpin an unknown":  with(class[:1]).When("ann", unpin).Unchanged(),
		"unpin as a member": with(class, by("ann", pinned)).When("bob", unpin).Refused(refusal.NotAllowed),
		"delete a pinned": with(class, by("ann", pinned)).When("bob", &chatv1.DeleteMessage{ConversationId: id, MessageId: "m"}).
			Then(unpinned, &chatv1.MessageDeleted{ConversationId: id, MessageId: "m"}),
		"delete as an admin": with(class, addedAs("cid", admin)).
			When("cid", &chatv1.DeleteMessage{ConversationId: id, MessageId: "m"}).
			Then(&chatv1.MessageDeleted{ConversationId: id, MessageId: "m"}),
	})
}

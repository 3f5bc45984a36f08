package conversation_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

const id = "7"

const stream = "conversation:" + id

func direct(users ...string) decidetest.Event {
	return decidetest.By(users[0],
		&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_DIRECT, UserIds: users})
}

func group(users ...string) decidetest.Event {
	return decidetest.By(users[0],
		&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: users})
}

func added(user string) decidetest.Event {
	return decidetest.By("ann", &chatv1.MemberAdded{ConversationId: id, UserId: user})
}

func left(user string) decidetest.Event {
	return decidetest.By(user, &chatv1.MemberLeft{ConversationId: id, UserId: user})
}

// leftTo is the event that an owner has left, and that another member has become the owner.
func leftTo(owner, successor string) decidetest.Event {
	return decidetest.By(owner, &chatv1.MemberLeft{ConversationId: id, UserId: owner, NewOwnerId: successor})
}

func sent(author, message string) decidetest.Event {
	return decidetest.By(author, &chatv1.MessageSent{ConversationId: id, MessageId: message})
}

func deleted(actor, message string) decidetest.Event {
	return decidetest.By(actor, &chatv1.MessageDeleted{ConversationId: id, MessageId: message})
}

func many(n int) (users []string) {
	for i := range n {
		users = append(users, fmt.Sprint("user", i))
	}
	return users
}

func TestDecide(t *testing.T) {
	t.Parallel()
	addDan := &chatv1.AddMember{ConversationId: id, UserId: "dan"}
	removeBob := &chatv1.RemoveMember{ConversationId: id, UserId: "bob"}
	leave := &chatv1.Leave{ConversationId: id}
	send := &chatv1.SendMessage{ConversationId: id, Body: "hi"}
	edit := &chatv1.EditMessage{ConversationId: id, MessageId: "m", Body: "better"}
	remove := &chatv1.DeleteMessage{ConversationId: id, MessageId: "m"}
	leftBy := func(user string) proto.Message { return &chatv1.MemberLeft{ConversationId: id, UserId: user} }
	edited := &chatv1.MessageEdited{ConversationId: id, MessageId: "m", Body: "better"}
	pair, class := direct("ann", "bob"), group("ann", "bob")
	pairWithMessage := []decidetest.Event{pair, sent("ann", "m")}
	pairDeleted := append(pairWithMessage[:2:2], deleted("ann", "m"))
	full := &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: many(2000)}
	dan := &chatv1.MemberAdded{ConversationId: id, UserId: "dan"}
	gone := &chatv1.MessageDeleted{ConversationId: id, MessageId: "m"}

	given := decidetest.Given
	decidetest.Test(t, stream, conversation.New, map[string]decidetest.Case{
		"start direct": given().When("ann", &chatv1.StartDirect{UserId: "bob"}).
			Then(&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_DIRECT, UserIds: []string{"ann", "bob"}}),
		"start direct again":       given(pair).When("ann", &chatv1.StartDirect{UserId: "bob"}).Unchanged(),
		"start direct by the peer": given(pair).When("bob", &chatv1.StartDirect{UserId: "ann"}).Unchanged(),
		"start direct with oneself": given().When("ann", &chatv1.StartDirect{UserId: "ann"}).
			Refused(refusal.InvalidField),

		"start group": given().
			When("ann", &chatv1.StartGroup{Title: "maths", UserIds: []string{"bob", "ann", "cid", "bob"}, HistoryFromJoining: true}).
			Then(&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, Title: "maths",
				UserIds: []string{"ann", "bob", "cid"}, HistoryFromJoining: true}),
		"start group alone": given().When("ann", &chatv1.StartGroup{}).
			Then(&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: []string{"ann"}}),
		"start group again":          given(class).When("ann", &chatv1.StartGroup{}).Unchanged(),
		"start group after all left": given(group("ann"), left("ann")).When("ann", &chatv1.StartGroup{}).Unchanged(),
		"start group of 2,000":       given().When("user0", &chatv1.StartGroup{UserIds: many(2000)}).Then(full),
		"start group of 2,001": given().When("ann", &chatv1.StartGroup{UserIds: many(2000)}).
			Refused("conversation_full"),

		"add":                 given(class).When("bob", addDan).Then(dan),
		"add a member":        given(group("ann", "dan")).When("ann", addDan).Unchanged(),
		"add one who left":    given(group("ann", "dan"), left("dan")).When("ann", addDan).Then(dan),
		"add by a stranger":   given(class).When("eve", addDan).Refused(refusal.NotAMember),
		"add oneself":         given(class).When("dan", addDan).Refused(refusal.NotAMember),
		"add by one who left": given(class, left("bob")).When("bob", addDan).Refused(refusal.NotAMember),
		"add to a direct":     given(pair).When("ann", addDan).Refused("direct_conversation"),
		"add to a full group": given(group(many(2000)...)).When("user3", addDan).Refused("conversation_full"),
		"add to an unknown":   given().When("ann", addDan).Refused(refusal.NotAMember),
		"add after all left":  given(group("ann"), left("ann")).When("ann", addDan).Refused(refusal.NotAMember),

		"remove":                   given(class).When("ann", removeBob).Then(leftBy("bob")),
		"remove a stranger":        given(group("ann", "cid")).When("ann", removeBob).Unchanged(),
		"remove by another member": given(group("ann", "bob", "cid")).When("cid", removeBob).Refused("not_allowed"),
		"remove the owner":         given(group("bob", "cid")).When("cid", removeBob).Refused("not_allowed"),
		"remove oneself as owner":  given(group("bob", "cid")).When("bob", removeBob).Refused("not_allowed"),
		"remove by a stranger":     given(class).When("eve", removeBob).Refused(refusal.NotAMember),
		"remove from a direct":     given(pair).When("ann", removeBob).Refused("direct_conversation"),
		"remove from an unknown":   given().When("ann", removeBob).Refused(refusal.NotAMember),
		"remove by the next owner": given(group("ann", "cid", "bob"), leftTo("ann", "cid")).When("cid", removeBob).
			Then(leftBy("bob")),
		"remove by a member who is not the next owner": given(group("ann", "cid", "bob", "dan"), leftTo("ann", "cid")).
			When("dan", removeBob).Refused("not_allowed"),
		"remove by an owner who left and came back": given(group("ann", "cid", "bob"), leftTo("ann", "cid"), added("ann")).
			When("ann", removeBob).Refused("not_allowed"),

		"leave":                    given(class).When("bob", leave).Then(leftBy("bob")),
		"leave as owner":           given(class).When("ann", leave).Then(leftTo("ann", "bob").Message),
		"leave as the last":        given(group("ann")).When("ann", leave).Then(leftBy("ann")),
		"leave twice":              given(class, left("bob")).When("bob", leave).Refused(refusal.NotAMember),
		"leave as a stranger":      given(class).When("eve", leave).Refused(refusal.NotAMember),
		"leave a direct":           given(pair).When("bob", leave).Refused("direct_conversation"),
		"leave an unknown":         given().When("ann", leave).Refused(refusal.NotAMember),
		"leave a direct, stranger": given(pair).When("eve", leave).Refused(refusal.NotAMember),

		"send": given(pair).When("bob", send).
			Then(&chatv1.MessageSent{ConversationId: id, MessageId: decidetest.Origin("bob").NewID(), Body: "hi"}),
		"send by a stranger":   given(pair).When("eve", send).Refused(refusal.NotAMember),
		"send by one who left": given(class, left("bob")).When("bob", send).Refused(refusal.NotAMember),
		"send to an unknown":   given().When("ann", send).Refused(refusal.NotAMember),

		"edit":               given(pairWithMessage...).When("ann", edit).Then(edited),
		"edit another's":     given(pairWithMessage...).When("bob", edit).Refused("not_allowed"),
		"edit as the owner":  given(class, sent("bob", "m")).When("ann", edit).Refused("not_allowed"),
		"edit an unknown":    given(pair, sent("ann", "n")).When("ann", edit).Refused(refusal.NotFound),
		"edit a deleted":     given(pairDeleted...).When("ann", edit).Refused("message_deleted"),
		"edit after leaving": given(class, sent("bob", "m"), left("bob")).When("bob", edit).Refused(refusal.NotAMember),
		"edit after coming back": given(class, sent("bob", "m"), left("bob"), added("bob")).When("bob", edit).
			Then(edited),
		"edit in an unknown conversation": given().When("ann", edit).Refused(refusal.NotAMember),

		"delete": given(pairWithMessage...).When("ann", remove).Then(gone),
		"delete another's": given(group("ann", "bob", "cid"), sent("cid", "m")).When("bob", remove).
			Refused("not_allowed"),
		"delete the peer's":      given(pair, sent("bob", "m")).When("ann", remove).Refused("not_allowed"),
		"delete as the owner":    given(class, sent("bob", "m")).When("ann", remove).Then(gone),
		"delete again":           given(pairDeleted...).When("ann", remove).Unchanged(),
		"delete another's again": given(pairDeleted...).When("bob", remove).Refused("not_allowed"),
		"delete an unknown":      given(pair).When("ann", remove).Refused(refusal.NotFound),
		"delete after leaving": given(class, sent("bob", "m"), left("bob")).When("bob", remove).
			Refused(refusal.NotAMember),
		"delete in an unknown conversation": given().When("ann", remove).Refused(refusal.NotAMember),

		"a message that is not a command": given(pair).When("ann", &chatv1.MemberLeft{}).Refused(refusal.UnknownType),
	})
}

// A stranger sends commands to a conversation that exists. The refusals must have the same text as for a conversation
// that does not exist, because a stranger must not find out which conversations exist.
func TestDecide_HidesFromStrangersWhetherAConversationExists(t *testing.T) {
	t.Parallel()
	for _, command := range []proto.Message{
		&chatv1.AddMember{UserId: "dan"}, &chatv1.RemoveMember{UserId: "bob"}, &chatv1.Leave{}, &chatv1.SendMessage{Body: "x"},
		&chatv1.EditMessage{MessageId: "m", Body: "x"}, &chatv1.DeleteMessage{MessageId: "m"},
		&chatv1.SetRole{UserId: "bob", Role: chatv1.Role_ROLE_ADMIN}, &chatv1.SetTitle{Title: "x"}, &chatv1.SetPicture{},
		&chatv1.SendMessage{Body: "x", ReplyTo: new("m"), InThread: true}, &chatv1.PinMessage{MessageId: "m"},
		&chatv1.UnpinMessage{MessageId: "m"},
	} {
		_, want := conversation.New(stream).Decide(decidetest.Origin("eve"), command)
		for _, past := range [][]decidetest.Event{{direct("ann", "bob")}, {group("ann", "bob"), sent("ann", "m")},
			{group("ann", "eve"), left("eve")}} {
			s := conversation.New(stream)
			decidetest.Evolve(t, s, stream, past...)
			if _, err := s.Decide(decidetest.Origin("eve"), command); err == nil || err.Error() != want.Error() {
				t.Errorf("%T: %v, but %v for an unknown conversation", command, err, want)
			}
		}
	}
}

// The id of a message depends only on the actor and the command id. Deciding a command again must give the same id, and
// two different commands must give two different ids.
func TestDecide_GivesAMessageOneID(t *testing.T) {
	t.Parallel()
	s := conversation.New(stream)
	decidetest.Evolve(t, s, stream, group("ann", "bob"))
	ids := map[string]bool{}
	for _, o := range []catalog.Origin{{Actor: "ann", CommandID: "1"}, {Actor: "ann", CommandID: "1"},
		{Actor: "ann", CommandID: "2"}, {Actor: "bob", CommandID: "1"}} {
		ids[decidetest.Decide(t, s, o, &chatv1.SendMessage{Body: "x"}).Events[0].(*chatv1.MessageSent).GetMessageId()] = true
	}
	if len(ids) != 3 {
		t.Errorf("three messages have the ids %v", ids)
	}
}

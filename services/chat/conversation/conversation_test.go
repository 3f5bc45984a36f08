package conversation_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
)

const id = "7"

// by is who sends a command; each test case sends one, so one command id is enough.
func by(user string) catalog.Origin { return catalog.Origin{Actor: user, CommandID: "c"} }

// happened is an event that somebody caused.
type happened struct {
	actor string
	event proto.Message
}

func direct(users ...string) happened {
	return happened{users[0], &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_DIRECT, UserIds: users}}
}

func group(users ...string) happened {
	return happened{users[0], &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: users}}
}

func added(user string) happened {
	return happened{"ann", &chatv1.MemberAdded{ConversationId: id, UserId: user}}
}

func left(user string) happened {
	return happened{user, &chatv1.MemberLeft{ConversationId: id, UserId: user}}
}

// sent is without a text, as deciding sees it.
func sent(author, message string) happened {
	return happened{author, &chatv1.MessageSent{ConversationId: id, MessageId: message}}
}

func deleted(actor, message string) happened {
	return happened{actor, &chatv1.MessageDeleted{ConversationId: id, MessageId: message}}
}

func many(n int) (users []string) {
	for i := range n {
		users = append(users, fmt.Sprint("user", i))
	}
	return users
}

type past = []happened

// decided is what a command came to: an event, a refusal's code, or, with neither, no change.
type decided struct {
	event proto.Message
	code  string
}

func event(m proto.Message) decided { return decided{event: m} }

func refused(code string) decided { return decided{code: code} }

var unchanged decided

func TestDecide(t *testing.T) {
	t.Parallel()
	addDan := &chatv1.AddMember{ConversationId: id, UserId: "dan"}
	removeBob := &chatv1.RemoveMember{ConversationId: id, UserId: "bob"}
	leave := &chatv1.Leave{ConversationId: id}
	send := &chatv1.SendMessage{ConversationId: id, Body: "hi"}
	edit := &chatv1.EditMessage{ConversationId: id, MessageId: "m", Body: "better"}
	remove := &chatv1.DeleteMessage{ConversationId: id, MessageId: "m"}
	leftBy := func(user string) decided { return event(&chatv1.MemberLeft{ConversationId: id, UserId: user}) }
	edited := event(&chatv1.MessageEdited{ConversationId: id, MessageId: "m", Body: "better"})
	pair, pairSaid, class := direct("ann", "bob"), past{direct("ann", "bob"), sent("ann", "m")}, group("ann", "bob")
	pairDeleted := append(pairSaid[:2:2], deleted("ann", "m"))
	full := event(&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: many(2000)})
	dan := event(&chatv1.MemberAdded{ConversationId: id, UserId: "dan"})
	gone := event(&chatv1.MessageDeleted{ConversationId: id, MessageId: "m"})

	for name, test := range map[string]struct {
		past    past
		by      string
		command proto.Message
		want    decided
	}{
		"start direct": {nil, "ann", &chatv1.StartDirect{UserId: "bob"}, event(&chatv1.ConversationStarted{
			ConversationId: id, Kind: chatv1.Kind_KIND_DIRECT, UserIds: []string{"ann", "bob"}})},
		"start direct again":       {past{pair}, "ann", &chatv1.StartDirect{UserId: "bob"}, unchanged},
		"start direct by the peer": {past{pair}, "bob", &chatv1.StartDirect{UserId: "ann"}, unchanged},
		"start direct with oneself": {nil, "ann", &chatv1.StartDirect{UserId: "ann"},
			refused(refusal.InvalidField)},

		"start group": {nil, "ann", &chatv1.StartGroup{Title: "maths", UserIds: []string{"bob", "ann", "cid", "bob"},
			HistoryFromJoining: true}, event(&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP,
			Title: "maths", UserIds: []string{"ann", "bob", "cid"}, HistoryFromJoining: true})},
		"start group alone": {nil, "ann", &chatv1.StartGroup{}, event(&chatv1.ConversationStarted{ConversationId: id,
			Kind: chatv1.Kind_KIND_GROUP, UserIds: []string{"ann"}})},
		"start group again":             {past{class}, "ann", &chatv1.StartGroup{}, unchanged},
		"start group that all left":     {past{group("ann"), left("ann")}, "ann", &chatv1.StartGroup{}, unchanged},
		"start group that is full":      {nil, "user0", &chatv1.StartGroup{UserIds: many(2000)}, full},
		"start group that is too large": {nil, "ann", &chatv1.StartGroup{UserIds: many(2000)}, refused("conversation_full")},

		"add":                      {past{class}, "bob", addDan, dan},
		"add a member":             {past{group("ann", "dan")}, "ann", addDan, unchanged},
		"add who left":             {past{group("ann", "dan"), left("dan")}, "ann", addDan, dan},
		"add by no member":         {past{class}, "eve", addDan, refused(refusal.NotAMember)},
		"add oneself":              {past{class}, "dan", addDan, refused(refusal.NotAMember)},
		"add by who left":          {past{class, left("bob")}, "bob", addDan, refused(refusal.NotAMember)},
		"add to a direct one":      {past{pair}, "ann", addDan, refused("direct_conversation")},
		"add to a full one":        {past{group(many(2000)...)}, "user3", addDan, refused("conversation_full")},
		"add to an unknown one":    {nil, "ann", addDan, refused(refusal.NotAMember)},
		"add to one that all left": {past{group("ann"), left("ann")}, "ann", addDan, refused(refusal.NotAMember)},

		"remove":                   {past{class}, "ann", removeBob, leftBy("bob")},
		"remove no member":         {past{group("ann", "cid")}, "ann", removeBob, unchanged},
		"remove by another member": {past{group("ann", "bob", "cid")}, "cid", removeBob, refused("not_allowed")},
		"remove the owner":         {past{group("bob", "cid")}, "cid", removeBob, refused("not_allowed")},
		"remove oneself as owner":  {past{group("bob", "cid")}, "bob", removeBob, refused("not_allowed")},
		"remove by no member":      {past{class}, "eve", removeBob, refused(refusal.NotAMember)},
		"remove from a direct one": {past{pair}, "ann", removeBob, refused("direct_conversation")},
		"remove from an unknown":   {nil, "ann", removeBob, refused(refusal.NotAMember)},
		"remove by the next owner": {past{group("ann", "cid", "bob"), left("ann")}, "cid", removeBob, leftBy("bob")},
		"remove by who is not next": {past{group("ann", "cid", "bob", "dan"), left("ann")}, "dan", removeBob,
			refused("not_allowed")},
		"remove by an owner who left and came back": {past{group("ann", "cid", "bob"), left("ann"), added("ann")},
			"ann", removeBob, refused("not_allowed")},

		"leave":                    {past{class}, "bob", leave, leftBy("bob")},
		"leave as owner":           {past{class}, "ann", leave, leftBy("ann")},
		"leave as the last":        {past{group("ann")}, "ann", leave, leftBy("ann")},
		"leave twice":              {past{class, left("bob")}, "bob", leave, refused(refusal.NotAMember)},
		"leave where one is not":   {past{class}, "eve", leave, refused(refusal.NotAMember)},
		"leave a direct one":       {past{pair}, "bob", leave, refused("direct_conversation")},
		"leave an unknown one":     {nil, "ann", leave, refused(refusal.NotAMember)},
		"leave a direct as nobody": {past{pair}, "eve", leave, refused(refusal.NotAMember)},

		"send": {past{pair}, "bob", send, event(&chatv1.MessageSent{ConversationId: id,
			MessageId: by("bob").NewID(), Body: "hi"})},
		"send by no member":      {past{pair}, "eve", send, refused(refusal.NotAMember)},
		"send by who left":       {past{class, left("bob")}, "bob", send, refused(refusal.NotAMember)},
		"send to an unknown one": {nil, "ann", send, refused(refusal.NotAMember)},

		"edit":                {pairSaid, "ann", edit, edited},
		"edit another's":      {pairSaid, "bob", edit, refused("not_allowed")},
		"edit as the owner":   {past{class, sent("bob", "m")}, "ann", edit, refused("not_allowed")},
		"edit none":           {past{pair, sent("ann", "n")}, "ann", edit, refused(refusal.NotFound)},
		"edit a deleted one":  {pairDeleted, "ann", edit, refused("message_deleted")},
		"edit by who left":    {past{class, sent("bob", "m"), left("bob")}, "bob", edit, refused(refusal.NotAMember)},
		"edit by who is back": {past{class, sent("bob", "m"), left("bob"), added("bob")}, "bob", edit, edited},
		"edit in an unknown":  {nil, "ann", edit, refused(refusal.NotAMember)},

		"delete":                {pairSaid, "ann", remove, gone},
		"delete another's":      {past{group("ann", "bob", "cid"), sent("cid", "m")}, "bob", remove, refused("not_allowed")},
		"delete the peer's":     {past{pair, sent("bob", "m")}, "ann", remove, refused("not_allowed")},
		"delete as the owner":   {past{class, sent("bob", "m")}, "ann", remove, gone},
		"delete again":          {pairDeleted, "ann", remove, unchanged},
		"delete another's gone": {pairDeleted, "bob", remove, refused("not_allowed")},
		"delete none":           {past{pair}, "ann", remove, refused(refusal.NotFound)},
		"delete by who left":    {past{class, sent("bob", "m"), left("bob")}, "bob", remove, refused(refusal.NotAMember)},
		"delete in an unknown":  {nil, "ann", remove, refused(refusal.NotAMember)},

		"a message that is not a command": {past{pair}, "ann", &chatv1.MemberLeft{}, refused(refusal.UnknownType)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := conversation.New("conversation:" + id)
			for _, h := range test.past {
				s.Evolve(catalog.Fact{Actor: h.actor}, h.event)
			}
			got := decide(t, s, by(test.by), test.command)
			if got.code != test.want.code || !proto.Equal(got.event, test.want.event) {
				t.Errorf("got %v %q, want %v %q", got.event, got.code, test.want.event, test.want.code)
			}
		})
	}
}

// fataler is a test, or one try of a property.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func decide(t fataler, s *conversation.State, o catalog.Origin, command proto.Message) decided {
	t.Helper()
	events, err := s.Decide(o, command)
	refused, isRefusal := refusal.Of(err)
	switch {
	case err != nil && !isRefusal, err != nil && len(events) > 0, len(events) > 1:
		t.Fatalf("%v %v", events, err)
	case isRefusal && refused.Text == "":
		t.Fatalf("%s without a text for people", refused.Code)
	case isRefusal:
		return decided{code: refused.Code}
	case len(events) == 1:
		return decided{event: events[0]}
	}
	return decided{}
}

// A stranger learns nothing by trying: the refusal is word for word that for a conversation that is not there.
func TestDecide_HidesFromStrangersWhetherAConversationExists(t *testing.T) {
	t.Parallel()
	for _, command := range []proto.Message{
		&chatv1.AddMember{UserId: "dan"}, &chatv1.RemoveMember{UserId: "bob"}, &chatv1.Leave{}, &chatv1.SendMessage{Body: "x"},
		&chatv1.EditMessage{MessageId: "m", Body: "x"}, &chatv1.DeleteMessage{MessageId: "m"},
	} {
		nowhere := conversation.New("conversation:" + id)
		_, want := nowhere.Decide(by("eve"), command)
		for _, past := range []past{{direct("ann", "bob")}, {group("ann", "bob"), sent("ann", "m")},
			{group("ann", "eve"), left("eve")}} {
			s := conversation.New("conversation:" + id)
			for _, h := range past {
				s.Evolve(catalog.Fact{Actor: h.actor}, h.event)
			}
			if _, err := s.Decide(by("eve"), command); err == nil || err.Error() != want.Error() {
				t.Errorf("%T: %v, of an unknown one %v", command, err, want)
			}
		}
	}
}

// The id of a message is the same however often its command is decided, and another for everyone else.
func TestDecide_GivesAMessageOneID(t *testing.T) {
	t.Parallel()
	s := conversation.New("conversation:" + id)
	s.Evolve(catalog.Fact{Actor: "ann"}, group("ann", "bob").event)
	ids := map[string]bool{}
	for _, o := range []catalog.Origin{{Actor: "ann", CommandID: "1"}, {Actor: "ann", CommandID: "1"},
		{Actor: "ann", CommandID: "2"}, {Actor: "bob", CommandID: "1"}} {
		ids[decide(t, s, o, &chatv1.SendMessage{Body: "x"}).event.(*chatv1.MessageSent).GetMessageId()] = true
	}
	if len(ids) != 3 {
		t.Errorf("three messages have the ids %v", ids)
	}
}

package catalog_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

func load(t *testing.T) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLoad_EveryDeclaredTopicHasItsPartitions(t *testing.T) {
	got := map[string]int32{}
	for _, topic := range load(t).Topics("") {
		got[topic.Name] = topic.Partitions
	}
	for name, want := range map[string]int32{
		"user-actions": 3, "post-events": 3, "story-events": 2, "comment-events": 3, "like-events": 3,
		"notification-events": 3, "study-group-events": 2, "chat-events": 3, "voice-call-events": 2, "file-events": 2,
		"follow-events": 3, "chat-commands": 12, "chat-results": 3,
	} {
		if got[name] != want {
			t.Errorf("topic %s has %d partitions, want %d", name, got[name], want)
		}
	}
}

func TestStartDirect_AddressesTheSameStreamForBothUsers(t *testing.T) {
	c := load(t)
	cmd, ok := c.Command("chat.start_direct")
	if !ok || !cmd.Public || cmd.Topic != "chat-commands" {
		t.Fatalf("chat.start_direct: %+v", cmd)
	}
	ab := cmd.Stream(&chatv1.StartDirect{UserId: "bob"}, catalog.Origin{Actor: "alice", CommandID: "1"})
	ba := cmd.Stream(&chatv1.StartDirect{UserId: "alice"}, catalog.Origin{Actor: "bob", CommandID: "2"})
	if ab == "" || ab != ba {
		t.Fatalf("%q and %q", ab, ba)
	}
}

func TestStartGroup_SameCommandSameStream_OtherUserOtherStream(t *testing.T) {
	cmd, _ := load(t).Command("chat.start_group")
	m := &chatv1.StartGroup{}
	one := cmd.Stream(m, catalog.Origin{Actor: "alice", CommandID: "1"})
	again := cmd.Stream(m, catalog.Origin{Actor: "alice", CommandID: "1"})
	other := cmd.Stream(m, catalog.Origin{Actor: "bob", CommandID: "1"})
	if one != again || one == other {
		t.Fatalf("%q %q %q", one, again, other)
	}
}

func TestPlace_ReturnsTheRoomsAndTheirNewMembers(t *testing.T) {
	c := load(t)
	m := &chatv1.ConversationStarted{ConversationId: "7", UserIds: []string{"a", "b"}, Title: "secret"}
	e, ok := c.EventOf(m)
	if !ok {
		t.Fatal("ConversationStarted is not declared")
	}
	p := e.Place(m, catalog.Origin{})
	if p.Stream != "conversation:7" || len(p.Opens) != 1 || len(p.Opens[0].Users) != 2 {
		t.Fatalf("%+v", p)
	}
	plain, personal := e.Split(m)
	if plain.(*chatv1.ConversationStarted).Title != "" || personal.(*chatv1.ConversationStarted).Title != "secret" {
		t.Fatalf("plain %v personal %v", plain, personal)
	}
	proto.Merge(plain, personal)
	if !proto.Equal(plain, m) {
		t.Fatalf("merged again: %v", plain)
	}
}

func TestNearest_ReturnsTheIntendedName(t *testing.T) {
	c := load(t)
	if got := c.Nearest("chat.send_mesage"); got != "chat.send_message" {
		t.Errorf("got %q", got)
	}
	if got := c.Nearest("zzz"); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestCheck_NamesTheInvalidField(t *testing.T) {
	c := load(t)
	for _, test := range []struct {
		name  string
		m     proto.Message
		field string
	}{
		{"chat.send_message", &chatv1.SendMessage{ConversationId: "7", Body: "hi"}, ""},
		{"chat.send_message", &chatv1.SendMessage{ConversationId: "7"}, "body"},
		{"chat.send_message", &chatv1.SendMessage{ConversationId: "a;b", Body: "hi"}, "conversation_id"},
		{"chat.send_message", &chatv1.SendMessage{ConversationId: "7", Body: "a\x00b"}, "body"},
		{"chat.send_message", &chatv1.SendMessage{ConversationId: "7", Body: strings.Repeat("é", 8001)}, "body"},
		{"chat.edit_message", &chatv1.EditMessage{ConversationId: "7", Body: "hi"}, "message_id"},
		{"chat.start_group", &chatv1.StartGroup{UserIds: []string{"bob", ""}}, "user_ids"},
		{"chat.start_group", &chatv1.StartGroup{UserIds: make([]string, 501)}, "user_ids"},
	} {
		cmd, _ := c.Command(test.name)
		err := cmd.Check(test.m)
		refused, _ := refusal.Of(err)
		if test.field == "" && err != nil || test.field != "" && (refused == nil || refused.Field != test.field) {
			t.Errorf("%s %v: got %v, want a refusal of %q", test.name, test.m, err, test.field)
		}
	}
}

func TestLogs_StateHasNone(t *testing.T) {
	c := load(t)
	if got := c.Logs(); !slices.Equal(got, []string{"chat", "feed", "notification", "toy"}) {
		t.Errorf("logs: %v", got)
	}
	if got := c.StateTopics(); len(got) != 1 || got[0].Name != "user-actions" {
		t.Errorf("state topics: %v", got)
	}
	if c.Connections() != "presence" {
		t.Errorf("connections are stored by %q", c.Connections())
	}
}

package faults

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// by returns an event of the conversation that the given actor has caused.
func by(actor string, m proto.Message) Event { return Event{Actor: actor, Stream: room, Message: m} }

// Each case adds a last event to a conversation of ann (the owner), bob (an admin), cid and dan. In this conversation,
// cid has sent m, bob has answered m with r in its thread, and ann has pinned m. The judge must report the rule that
// the last event breaks, and no other rule.
func TestConversations_FindsEachBrokenRule(t *testing.T) {
	t.Parallel()
	begin := []Event{
		by("ann", &chatv1.ConversationStarted{Kind: chatv1.Kind_KIND_GROUP, UserIds: []string{"ann", "bob", "cid"}}),
		by("cid", &chatv1.MemberAdded{UserId: "dan"}),
		by("ann", &chatv1.RoleChanged{UserId: "bob", Role: chatv1.Role_ROLE_ADMIN}),
		by("bob", &chatv1.TitleChanged{Title: "maths"}),
		by("cid", &chatv1.MessageSent{MessageId: "m", MentionedUserIds: []string{"dan"}}),
		by("bob", &chatv1.MessageSent{MessageId: "r", ReplyTo: "m", ThreadId: "m"}),
		by("ann", &chatv1.MessagePinned{MessageId: "m"}),
	}
	for name, test := range map[string]struct {
		last    Event
		promise string // empty if no rule is broken
	}{
		"the owner removes an admin":            {by("ann", &chatv1.MemberLeft{UserId: "bob"}), ""},
		"an admin deletes a message":            {by("bob", &chatv1.MessageDeleted{MessageId: "r", ThreadId: "m"}), ""},
		"the owner hands over":                  {by("ann", &chatv1.RoleChanged{UserId: "cid", Role: chatv1.Role_ROLE_OWNER, PreviousOwnerId: "ann"}), ""},
		"the owner leaves":                      {by("ann", &chatv1.MemberLeft{UserId: "ann", NewOwnerId: "bob"}), ""},
		"a stranger sends":                      {by("eve", &chatv1.MessageSent{MessageId: "x"}), access},
		"a member is added again":               {by("ann", &chatv1.MemberAdded{UserId: "dan"}), rules},
		"a member removes another":              {by("cid", &chatv1.MemberLeft{UserId: "dan"}), rules},
		"an admin removes the owner":            {by("bob", &chatv1.MemberLeft{UserId: "ann", NewOwnerId: "bob"}), rules},
		"no owner is left":                      {by("ann", &chatv1.MemberLeft{UserId: "ann"}), rules},
		"two owners":                            {by("ann", &chatv1.RoleChanged{UserId: "cid", Role: chatv1.Role_ROLE_OWNER}), rules},
		"an admin changes a role":               {by("bob", &chatv1.RoleChanged{UserId: "cid", Role: chatv1.Role_ROLE_ADMIN}), rules},
		"a member sets the title":               {by("cid", &chatv1.TitleChanged{}), rules},
		"a role of a stranger":                  {by("ann", &chatv1.RoleChanged{UserId: "eve", Role: chatv1.Role_ROLE_MEMBER}), rules},
		"an answer to no message":               {by("cid", &chatv1.MessageSent{MessageId: "x", ReplyTo: "none"}), rules},
		"a thread in a thread":                  {by("cid", &chatv1.MessageSent{MessageId: "x", ReplyTo: "r", ThreadId: "r"}), rules},
		"a mention of a stranger":               {by("cid", &chatv1.MessageSent{MessageId: "x", MentionedUserIds: []string{"eve"}}), rules},
		"a member mentions all":                 {by("cid", &chatv1.MessageSent{MessageId: "x", MentionsAll: true}), rules},
		"an edit by another member":             {by("dan", &chatv1.MessageEdited{MessageId: "m"}), rules},
		"a member deletes another's":            {by("dan", &chatv1.MessageDeleted{MessageId: "m"}), rules},
		"a pinned message is deleted":           {by("cid", &chatv1.MessageDeleted{MessageId: "m"}), rules},
		"a deletion without its thread":         {by("bob", &chatv1.MessageDeleted{MessageId: "r"}), rules},
		"a message is pinned twice":             {by("ann", &chatv1.MessagePinned{MessageId: "m"}), rules},
		"a member pins":                         {by("cid", &chatv1.MessagePinned{MessageId: "r"}), rules},
		"a message that is not there is pinned": {by("ann", &chatv1.MessagePinned{MessageId: "none"}), rules},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := Log{Owner: "chat"}
			for i, e := range append(begin[:len(begin):len(begin)], test.last) {
				e.Version, e.Type = int64(i+1), fmt.Sprintf("%T", e.Message)
				log.Events = append(log.Events, e)
			}
			j := &judge{s: &Stored{Logs: []Log{log}}, count: map[string]int{}}
			j.conversations()
			if test.promise == "" {
				require.Empty(t, j.found)
				return
			}
			require.NotEmpty(t, j.found)
			for _, v := range j.found {
				require.Equal(t, test.promise, v.Promise, v)
				require.Contains(t, v.What, fmt.Sprintf("at version %d", len(log.Events)))
			}
		})
	}
}

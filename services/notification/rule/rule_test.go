package rule_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/notification/rule"
)

func TestRaise_NotifiesUsersThatAnotherUserAdded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		event proto.Message
		want  []string
	}{
		"a started conversation":  {&chatv1.ConversationStarted{UserIds: []string{"alice", "bob", "carol"}}, []string{"bob", "carol"}},
		"an added user":           {&chatv1.MemberAdded{UserId: "dan"}, []string{"dan"}},
		"a user who added itself": {&chatv1.MemberAdded{UserId: "alice"}, nil},
		"a message":               {&chatv1.MessageSent{MessageId: "m"}, nil},
	} {
		about := rule.About{ID: "e1", Stream: "conversation:7", Version: 3, Actor: "alice", Event: test.event}
		var got []string
		for i, r := range rule.Raise(about) {
			got = append(got, r.RecipientId)
			if again := rule.Raise(about)[i]; again.NotificationId != r.NotificationId || r.AboutVersion != 3 || r.By != "alice" {
				t.Errorf("%s: %v, again %v", name, r, again)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: raised for %v, want %v", name, got, test.want)
		}
	}
}

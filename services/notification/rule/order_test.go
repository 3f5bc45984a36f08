package rule_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/notification/rule"
)

// Kafka does not order the records of different partitions, so the events of several conversations arrive in any
// interleaving. In the end, every recipient must have the same notifications, whatever the interleaving was.
func TestRaise_DoesNotDependOnTheOrderOfConversations(t *testing.T) {
	t.Parallel()
	var streams [][]rule.About
	for c := range 4 {
		var events []rule.About
		for v, e := range []proto.Message{
			&chatv1.ConversationStarted{UserIds: []string{"ann", "bob", "cid"}}, &chatv1.MessageSent{MessageId: "m"},
			&chatv1.MemberAdded{UserId: "dan"}, &chatv1.MemberLeft{UserId: "dan"}, &chatv1.MemberAdded{UserId: "dan"},
		} {
			events = append(events, rule.About{ID: fmt.Sprint("e", c, "-", v), Stream: fmt.Sprint("conversation:", c),
				Version: catalog.Version(v) + 1, Actor: []string{"ann", "bob"}[c%2], Event: e})
		}
		streams = append(streams, events)
	}
	state := func(random *rand.Rand) map[string]string {
		all, next := map[string]string{}, make([]int, len(streams))
		for left := len(streams) * len(streams[0]); left > 0; {
			n := random.IntN(len(streams))
			if next[n] == len(streams[n]) {
				continue
			}
			for _, r := range rule.Raise(streams[n][next[n]]) {
				all[r.GetRecipientId()+" "+r.GetNotificationId()] = fmt.Sprint(r)
			}
			next[n], left = next[n]+1, left-1
		}
		return all
	}
	want := state(rand.New(rand.NewPCG(0, 0)))
	if len(want) != 16 {
		t.Fatalf("%d notifications", len(want))
	}
	for seed := range uint64(200) {
		if got := state(rand.New(rand.NewPCG(seed, 1))); !maps.Equal(got, want) {
			t.Fatalf("seed %d: %v, want %v", seed, got, want)
		}
	}
}

package post_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	feedv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/feed/post"
)

func TestCreate_OnceAndByItsAuthor(t *testing.T) {
	t.Parallel()
	s := post.New("post:7")
	by := catalog.Origin{Actor: "alice", CommandID: "1"}
	events, err := s.Decide(by, &feedv1.CreatePost{Body: "hello"})
	want := &feedv1.PostCreated{PostId: "7", AuthorId: "alice", Body: "hello"}
	if err != nil || len(events) != 1 || !proto.Equal(events[0], want) {
		t.Fatalf("%v %v", events, err)
	}
	s.Evolve(catalog.Fact{Actor: "alice", Version: 1}, events[0])
	if again, err := s.Decide(by, &feedv1.CreatePost{Body: "hello"}); err != nil || len(again) != 0 {
		t.Fatalf("created again: %v %v", again, err)
	}
}

func TestDecide_RefusesWhatIsNoCommandOfAPost(t *testing.T) {
	t.Parallel()
	by := catalog.Origin{Actor: "alice", CommandID: "1"}
	events, err := post.New("post:7").Decide(by, &feedv1.PostCreated{})
	if refused, ok := refusal.Of(err); !ok || refused.Code != refusal.UnknownType || len(events) != 0 {
		t.Fatalf("%v %v", events, err)
	}
}

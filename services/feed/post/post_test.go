package post_test

import (
	"testing"

	feedv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/feed/post"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	create, created := &feedv1.CreatePost{Body: "hello"}, &feedv1.PostCreated{PostId: "7", AuthorId: "alice", Body: "hello"}
	decidetest.Test(t, "post:7", post.New, map[string]decidetest.Case{
		"create":       decidetest.Given().When("alice", create).Then(created),
		"create again": decidetest.Given(decidetest.By("alice", created)).When("alice", create).Unchanged(),
		"a message that is not a command": decidetest.Given().When("alice", &feedv1.PostCreated{}).
			Refused(refusal.UnknownType),
	})
}

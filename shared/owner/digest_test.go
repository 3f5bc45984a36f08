package owner

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	feedv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Two commands that request different changes must have different digests. A command that is sent twice must have the
// same digest both times.
func TestDigest_DiffersBetweenCommands(t *testing.T) {
	c, err := catalog.Load()
	require.NoError(t, err)
	for _, both := range [][2]proto.Message{
		{&chatv1.SendMessage{ConversationId: "1", Body: "first"}, &chatv1.SendMessage{ConversationId: "1", Body: "second"}},
		{&chatv1.EditMessage{ConversationId: "1", MessageId: "m", Body: "first"},
			&chatv1.EditMessage{ConversationId: "1", MessageId: "m", Body: "second"}},
		{&chatv1.StartGroup{UserIds: []string{"bob"}}, &chatv1.StartGroup{UserIds: []string{"carol"}}},
		{&feedv1.CreatePost{Body: "first"}, &feedv1.CreatePost{Body: "second"}},
	} {
		var digests []string
		for _, m := range []proto.Message{both[0], both[1], both[0]} {
			declared, ok := c.CommandOf(m)
			require.True(t, ok)
			body, err := proto.Marshal(m)
			require.NoError(t, err)
			origin := catalog.Origin{Actor: "alice", CommandID: "1"}
			sent := envelope.Command{ID: "1", Type: declared.Name, Actor: "alice", Stream: declared.Stream(m, origin), Body: body}
			read, err := command.Topics{Service: declared.Owner, Catalog: c}.Read(sent.Message())
			require.NoError(t, err)
			digests = append(digests, digestOfMessage(read.Command, read.Message))
		}
		assert.NotEqual(t, digests[0], digests[1], "%T", both[0])
		assert.Equal(t, digests[0], digests[2], "%T", both[0])
	}
}

package command_test

import (
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Read repeats the checks that a gateway makes before it publishes a command. If the sender can correct the command,
// the error of Read is a refusal. With any other error the command becomes a dead letter.
func TestRead_MakesTheChecksOfGateways(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	body := func(text string) []byte {
		b, err := proto.Marshal(&chatv1.SendMessage{ConversationId: "7", Body: text})
		require.NoError(t, err)
		return b
	}
	valid := envelope.Command{ID: "1", Type: "chat.send_message", Actor: "alice", Stream: "conversation:7", Body: body("hi")}
	read, err := command.Topics{Service: "chat", Catalog: c}.Read(valid.Message())
	require.NoError(t, err)
	require.Equal(t, "hi", read.Message.(*chatv1.SendMessage).GetBody())
	require.Equal(t, "chat.send_message", read.Declared.Name)

	for name, change := range map[string]struct {
		change  func(*envelope.Command)
		refused string // the field that the refusal names; empty: the error is not a refusal
		text    string
	}{
		"a field that is not valid":    {func(c *envelope.Command) { c.Body = body("") }, "body", ""},
		"a text that cannot be stored": {func(c *envelope.Command) { c.Correlation = "a\x00b" }, "correlation", ""},
		"another stream":               {func(c *envelope.Command) { c.Stream = "conversation:8" }, "", `name the stream "conversation:7"`},
		"another service":              {func(c *envelope.Command) { c.Type = "feed.create_post" }, "", "is not one of chat"},
		"an unknown type":              {func(c *envelope.Command) { c.Type = "chat.fly" }, "", "is not one of chat"},
		"bytes of another message":     {func(c *envelope.Command) { c.Body = []byte("\xff") }, "", "chat.send_message"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sent := valid
			change.change(&sent)
			read, err := command.Topics{Service: "chat", Catalog: c}.Read(sent.Message())
			require.Error(t, err)
			refused, is := refusal.Of(err)
			require.Equal(t, change.refused != "", is, err)
			if is {
				require.True(t, strings.HasPrefix(refused.Text, change.refused+" "), refused.Text)
				require.Equal(t, "1", read.ID, "the envelope is needed to notify the sender")
				return
			}
			require.ErrorContains(t, err, change.text)
		})
	}
	_, err = command.Topics{Service: "chat", Catalog: c}.Read(message.NewMessage("1", []byte("?")))
	require.Error(t, err)
}

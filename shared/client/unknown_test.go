package client_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/shared/client"
)

// later returns encoded fields that only a later version of the protocol declares: one field of each wire type.
func later() []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 901, protowire.VarintType), 7)
	b = protowire.AppendString(protowire.AppendTag(b, 902, protowire.BytesType), "x")
	b = protowire.AppendFixed32(protowire.AppendTag(b, 903, protowire.Fixed32Type), 7)
	return protowire.AppendFixed64(protowire.AppendTag(b, 904, protowire.Fixed64Type), 7)
}

// newer encodes a message as a gateway of a later version does, with additional fields (see the function later).
func newer(m proto.Message) []byte {
	m.ProtoReflect().SetUnknown(later())
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// gatewayOfALaterVersion starts a server that answers each message of a client with the next element of the parameter
// replies, which may contain several frames. It returns the server's URL.
func gatewayOfALaterVersion(t *testing.T, kind int, replies ...[]byte) string {
	t.Helper()
	upgrader := websocket.Upgrader{Subprotocols: []string{"edumatrix.v1.json", "edumatrix.v1.proto"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		socket, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = socket.Close() }()
		for _, reply := range replies {
			if _, _, err := socket.ReadMessage(); err != nil || socket.WriteMessage(kind, reply) != nil {
				return
			}
		}
		_, _, _ = socket.ReadMessage()
	}))
	t.Cleanup(server.Close)
	return "ws" + strings.TrimPrefix(server.URL, "http")
}

func inJSON() (kind int, replies [][]byte) {
	message := func(frames ...string) []byte { return []byte(strings.Join(frames, "\n")) }
	return websocket.TextMessage, [][]byte{
		message(`{"type":"weather","sun":{"hours":[1,null]}}`,
			`{"type":"reply","reply_to":"c1","ok":true,"mood":"good","data":{"user_id":"bob","resume_token":"t1","session_id":"s1","colour":7}}`),
		message(`{"type":"event","event":"chat.message_sent","stream":"conversation:g","version":2,"colour":"red","data":{"conversation_id":"g","body":"one","font":{"size":3}}}`,
			`{"type":"forecast"}`,
			`{"type":"event","event":"weather.changed","stream":"weather:here","version":1,"data":{"rain":true}}`,
			`{"type":"signal","signal":"weather.gust","room":"weather:here","actor":"eve","data":{"speed":3}}`,
			`{"type":"heartbeat","resume_token":"t2","load":0.5}`,
			`{"type":"reply","reply_to":"c2","ok":true,"mood":"good","outcome":{"kind":"committed","command_id":"x","version":3,"cost":7}}`,
			`{"type":"event","event":"chat.message_sent","stream":"conversation:g","version":3,"data":{"conversation_id":"g","body":"two"}}`,
			`{"type":"reply","reply_to":"nobody","ok":true}`),
		message(`{"type":"reply","reply_to":"c3","ok":true,"mood":7}`),
	}
}

func inProtobuf() (kind int, replies [][]byte) {
	message := func(frames ...*gatewayv1.ServerFrame) (b []byte) {
		for _, f := range frames {
			b = protowire.AppendBytes(b, newer(f))
		}
		return b
	}
	reply := func(r *gatewayv1.Reply) *gatewayv1.ServerFrame {
		r.ProtoReflect().SetUnknown(later())
		return &gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: r}}
	}
	event := func(e *gatewayv1.Event) *gatewayv1.ServerFrame {
		e.ProtoReflect().SetUnknown(later())
		return &gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Event{Event: e}}
	}
	said := func(version int64, body string) *gatewayv1.ServerFrame {
		return event(&gatewayv1.Event{Event: "chat.message_sent", Stream: "conversation:g", Version: version,
			Data: newer(&chatv1.MessageSent{ConversationId: "g", Body: body})})
	}
	token := "t2"
	outcome := &gatewayv1.Outcome{Kind: gatewayv1.OutcomeKind_OUTCOME_KIND_COMMITTED, CommandId: "x", Version: proto.Int64(3)}
	outcome.ProtoReflect().SetUnknown(later())
	return websocket.BinaryMessage, [][]byte{
		message(&gatewayv1.ServerFrame{}, reply(&gatewayv1.Reply{ReplyTo: "c1", Ok: true,
			Data: newer(&gatewayv1.Connected{UserId: "bob", ResumeToken: "t1", SessionId: "s1"})})),
		message(said(2, "one"), &gatewayv1.ServerFrame{},
			event(&gatewayv1.Event{Event: "weather.changed", Stream: "weather:here", Version: 1, Data: []byte{1, 2, 3}}),
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Signal{Signal: &gatewayv1.Signal{Signal: "weather.gust", Data: []byte{1}}}},
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Heartbeat{Heartbeat: &gatewayv1.Heartbeat{ResumeToken: &token}}},
			reply(&gatewayv1.Reply{ReplyTo: "c2", Ok: true, Outcome: outcome}), said(3, "two"),
			reply(&gatewayv1.Reply{ReplyTo: "nobody", Ok: true})),
		message(reply(&gatewayv1.Reply{ReplyTo: "c3", Ok: true})),
	}
}

// A gateway is newer than its client. The client must ignore keys and frame types that it does not know, and must
// deliver events with unknown names. It must handle all other frames, even those in the same message.
func TestClient_AcceptsFramesOfALaterVersion(t *testing.T) {
	t.Parallel()
	for name, encoded := range map[string]func() (int, [][]byte){"JSON": inJSON, "Protobuf": inProtobuf} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind, replies := encoded()
			events := make(chan string, 10)
			c := dial(t, client.Options{URL: gatewayOfALaterVersion(t, kind, replies...), Protobuf: name == "Protobuf",
				OnEvent: func(e client.Event) { events <- fmt.Sprint(e.Type, " ", e.Version, " ", string(e.Data)) }})
			require.Equal(t, "bob", c.Connected().UserID)
			require.Equal(t, "s1", c.Connected().SessionID)
			o, err := c.Command(t.Context(), "chat.send_message", map[string]string{"conversation_id": "g", "body": "hi"})
			require.NoError(t, err)
			require.Equal(t, "committed", o.Kind)
			require.EqualValues(t, 3, o.Version)
			require.Equal(t, "t2", c.ResumeToken())
			for _, want := range []struct{ event, body string }{{"chat.message_sent 2 ", `"one"`}, {"weather.changed 1 ", ""}, {"chat.message_sent 3 ", `"two"`}} {
				select {
				case got := <-events:
					require.True(t, strings.HasPrefix(got, want.event), got)
					require.Contains(t, got, want.body)
				case <-time.After(10 * time.Second):
					t.Fatalf("%s does not arrive", want.event)
				}
			}
			_, err = c.Request(t.Context(), map[string]any{"type": "ping"})
			require.NoError(t, err, "the connection stays open")
		})
	}
}

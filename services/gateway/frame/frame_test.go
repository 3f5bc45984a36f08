package frame_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// decoded decodes a binary WebSocket message that contains one frame in Protobuf.
func decoded(t *testing.T, message []byte) *gatewayv1.ServerFrame {
	t.Helper()
	one, n := protowire.ConsumeBytes(message)
	require.Equal(t, len(message), n)
	var f gatewayv1.ServerFrame
	require.NoError(t, proto.Unmarshal(one, &f))
	require.Empty(t, f.ProtoReflect().GetUnknown())
	return &f
}

func TestEncode_MatchesTheDeclarationInEitherEncoding(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 28, 9, 30, 0, 5000, time.UTC)
	body := &chatv1.MessageSent{ConversationId: "g", MessageId: "m", Body: `a < "b"`}
	encoded, err := proto.Marshal(body)
	require.NoError(t, err)
	refused := &refusal.Error{Code: refusal.InvalidField, Text: "body is missing", Field: "body", TraceID: "t"}
	event := func(v frame.Event) func(e frame.Encoding) ([]byte, error) {
		return func(e frame.Encoding) ([]byte, error) { return v.Encode(e, encoded, &chatv1.MessageSent{}) }
	}
	errorOf := &gatewayv1.Error{Code: "invalid_field", Message: "body is missing", Field: proto.String("body"), TraceId: proto.String("t")}
	outcome := &gatewayv1.Outcome{Kind: gatewayv1.OutcomeKind_OUTCOME_KIND_COMMITTED, CommandId: "c", Stream: proto.String("s"),
		Version: proto.Int64(7)}
	ended := &gatewayv1.Outcome{Kind: gatewayv1.OutcomeKind_OUTCOME_KIND_REFUSED, CommandId: "c", Error: errorOf}
	data := `{"conversation_id":"g","message_id":"m","body":"a < \"b\"","reply_to":"","thread_id":"",` +
		`"mentioned_user_ids":[],"mentions_all":false}`
	for _, c := range []struct {
		encode func(e frame.Encoding) ([]byte, error)
		json   string
		proto  *gatewayv1.ServerFrame
	}{
		{frame.Done("1").Encode, `{"type":"reply","reply_to":"1","ok":true}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: &gatewayv1.Reply{ReplyTo: "1", Ok: true}}}},
		{frame.Answer("1", body).Encode, `{"type":"reply","reply_to":"1","ok":true,"data":` + data + `}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: &gatewayv1.Reply{ReplyTo: "1", Ok: true, Data: encoded}}}},
		{frame.Answer("1", &gatewayv1.Authenticated{}).Encode, `{"type":"reply","reply_to":"1","ok":true,"data":{}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: &gatewayv1.Reply{ReplyTo: "1", Ok: true, Data: []byte{}}}}},
		{frame.Refused("1", refused).Encode,
			`{"type":"reply","reply_to":"1","ok":false,"error":{"code":"invalid_field","message":"body is missing","field":"body","trace_id":"t"}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: &gatewayv1.Reply{ReplyTo: "1", Error: errorOf}}}},
		{frame.Refused("", refused).Encode,
			`{"type":"error","error":{"code":"invalid_field","message":"body is missing","field":"body","trace_id":"t"}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Error{Error: &gatewayv1.Failure{Error: errorOf}}}},
		{frame.Outcome("1", outcome).Encode,
			`{"type":"reply","reply_to":"1","ok":true,"outcome":{"kind":"committed","command_id":"c","stream":"s","version":7}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: &gatewayv1.Reply{ReplyTo: "1", Ok: true, Outcome: outcome}}}},
		{frame.Outcome("1", ended).Encode,
			`{"type":"reply","reply_to":"1","ok":false,"outcome":{"kind":"refused","command_id":"c","error":{"code":"invalid_field","message":"body is missing","field":"body","trace_id":"t"}}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Reply{Reply: &gatewayv1.Reply{ReplyTo: "1", Outcome: ended}}}},
		{frame.LateOutcome(outcome).Encode, `{"type":"outcome","outcome":{"kind":"committed","command_id":"c","stream":"s","version":7}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Outcome{Outcome: &gatewayv1.LateOutcome{Outcome: outcome}}}},
		{frame.Signal("chat.typing", "conversation:g", "bob", &chatv1.Typing{ConversationId: "g"}).Encode,
			`{"type":"signal","signal":"chat.typing","room":"conversation:g","actor":"bob","data":{"conversation_id":"g"}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Signal{Signal: &gatewayv1.Signal{Signal: "chat.typing",
				Room: "conversation:g", Actor: "bob", Data: []byte("\n\x01g")}}}},
		{frame.NotRecovered("conversation:g").Encode, `{"type":"not_recovered","room":"conversation:g"}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_NotRecovered{NotRecovered: &gatewayv1.NotRecovered{Room: "conversation:g"}}}},
		{frame.Unsubscribed("post:7", refusal.New(refusal.Unavailable, "no")).Encode,
			`{"type":"unsubscribed","room":"post:7","error":{"code":"unavailable","message":"no","retry_after_ms":1000}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Unsubscribed{Unsubscribed: &gatewayv1.Unsubscribed{Room: "post:7",
				Error: &gatewayv1.Error{Code: "unavailable", Message: "no", RetryAfterMs: proto.Int64(1000)}}}}},
		{frame.Heartbeat("").Encode, `{"type":"heartbeat"}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Heartbeat{Heartbeat: &gatewayv1.Heartbeat{}}}},
		{frame.Heartbeat("t").Encode, `{"type":"heartbeat","resume_token":"t"}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Heartbeat{Heartbeat: &gatewayv1.Heartbeat{ResumeToken: proto.String("t")}}}},
		{frame.TokenExpiring(time.Minute).Encode, `{"type":"token_expiring","expires_in_ms":60000}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_TokenExpiring{TokenExpiring: &gatewayv1.TokenExpiring{ExpiresInMs: 60000}}}},
		{frame.Closing(4001, &refusal.Error{Code: "too_slow", Text: "no", RetryAfter: time.Second / 2}).Encode,
			`{"type":"closing","code":4001,"error":{"code":"too_slow","message":"no","retry_after_ms":500}}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Closing{Closing: &gatewayv1.Closing{Code: 4001,
				Error: &gatewayv1.Error{Code: "too_slow", Message: "no", RetryAfterMs: proto.Int64(500)}}}}},
		{event(frame.Event{Name: "chat.message_sent", Stream: "conversation:g", Version: 3, ID: "e", Time: at, Actor: "bob",
			CommandID: "c", Redacted: true}),
			`{"type":"event","event":"chat.message_sent","stream":"conversation:g","version":3,"id":"e","time":"2026-11-28T09:30:00.000005Z",` +
				`"actor":"bob","command_id":"c","redacted":true,"data":` + data + `}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Event{Event: &gatewayv1.Event{Event: "chat.message_sent",
				Stream: "conversation:g", Version: 3, Id: "e", Time: timestamppb.New(at), Actor: proto.String("bob"),
				CommandId: proto.String("c"), Redacted: proto.Bool(true), Data: encoded}}}},
		{event(frame.Event{Name: "chat.message_sent", Stream: "conversation:g", Version: 3, ID: "e", Time: at}),
			`{"type":"event","event":"chat.message_sent","stream":"conversation:g","version":3,"id":"e","time":"2026-11-28T09:30:00.000005Z",` +
				`"data":` + data + `}`,
			&gatewayv1.ServerFrame{Frame: &gatewayv1.ServerFrame_Event{Event: &gatewayv1.Event{Event: "chat.message_sent",
				Stream: "conversation:g", Version: 3, Id: "e", Time: timestamppb.New(at), Data: encoded}}}},
	} {
		text, err := c.encode(frame.JSON)
		require.NoError(t, err)
		require.Equal(t, c.json, strings.ReplaceAll(string(text), `,"reply_to_message_id":""`, ""))
		message, err := c.encode(frame.Protobuf)
		require.NoError(t, err)
		require.True(t, proto.Equal(c.proto, decoded(t, message)), "%s:\n%v\n%v", c.json, c.proto, decoded(t, message))
	}
}

// ServerFrame declares one field for each kind of frame. Package frame must have a constructor for each of these kinds.
func TestEncode_SupportsEveryDeclaredFrame(t *testing.T) {
	t.Parallel()
	none := &refusal.Error{Code: "c", Text: "t"}
	made := map[string]bool{"event": true}
	for _, f := range []frame.Frame{frame.Done("1"), frame.Refused("", none), frame.LateOutcome(&gatewayv1.Outcome{}),
		frame.Signal("s", "r", "a", nil), frame.NotRecovered("r"), frame.Unsubscribed("r", none), frame.Heartbeat(""),
		frame.TokenExpiring(0), frame.Closing(1, none)} {
		message, err := f.Encode(frame.Protobuf)
		require.NoError(t, err)
		m := decoded(t, message).ProtoReflect()
		made[string(m.WhichOneof(m.Descriptor().Oneofs().ByName("frame")).Name())] = true
	}
	fields := (&gatewayv1.ServerFrame{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		require.True(t, made[string(fields.Get(i).Name())], fields.Get(i).Name())
		require.NotNil(t, fields.Get(i).Message())
	}
	require.Equal(t, len(made), fields.Len())
}

func encodeFrames(frames ...*gatewayv1.ClientFrame) (message []byte) {
	for _, f := range frames {
		one, _ := proto.Marshal(f)
		message = protowire.AppendBytes(message, one)
	}
	return message
}

func collect(e frame.Encoding, message []byte) (requests []frame.Request, errs []string) {
	for r, err := range frame.Decode(e, message) {
		text := ""
		if err != nil {
			text = err.Error()
		}
		requests, errs = append(requests, r), append(errs, text)
	}
	return requests, errs
}

func TestDecode_AcceptsSeveralFramesInOneMessage(t *testing.T) {
	t.Parallel()
	for e, message := range map[frame.Encoding][]byte{
		frame.JSON: []byte("{\"id\":\"1\",\"type\":\"ping\"}\n{\"id\":\"2\",\n \"type\":\"x\",\"command_id\":\"c\",\"expires_in_ms\":5e3," +
			"\"data\":{}}\r\n\n{\"id\":\"3\",\"type\":\"ping\"}\n"),
		frame.Protobuf: encodeFrames(&gatewayv1.ClientFrame{Id: "1", Type: "ping"},
			&gatewayv1.ClientFrame{Id: "2", Type: "x", CommandId: "c", ExpiresInMs: 5000}, &gatewayv1.ClientFrame{Id: "3", Type: "ping"}),
	} {
		requests, errs := collect(e, message)
		require.Equal(t, []string{"", "", ""}, errs)
		require.Len(t, requests, 3)
		require.Equal(t, "1", requests[0].ID)
		require.Equal(t, frame.Request{ID: "2", Type: "x", CommandID: "c", ExpiresIn: 5 * time.Second, Data: requests[1].Data,
			Size: requests[1].Size}, requests[1])
		require.Equal(t, "3", requests[2].ID)
	}
}

// A frame is encoded as Protobuf and then as JSON. The JSON must contain the data once.
func TestEncode_ProtobufDoesNotChangeTheFrame(t *testing.T) {
	t.Parallel()
	f := frame.Signal("chat.typing", "conversation:g", "ann", &chatv1.Typing{ConversationId: "g"})
	want, err := f.Encode(frame.JSON)
	require.NoError(t, err)
	_, err = f.Encode(frame.Protobuf)
	require.NoError(t, err)
	got, err := f.Encode(frame.JSON)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

// A refused frame has a size too, so that an id of 60 kB costs its sender as much as data of 60 kB.
func TestDecode_ReturnsTheSizeOfEveryFrame(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 60_000)
	for e, message := range map[frame.Encoding][]byte{
		frame.JSON:     []byte(`{"type":"ping"}` + "\n" + `{"type":"ping","id":"` + large + `"}`),
		frame.Protobuf: encodeFrames(&gatewayv1.ClientFrame{Type: "ping"}, &gatewayv1.ClientFrame{Type: "ping", Id: large}),
	} {
		requests, errs := collect(e, message)
		require.Equal(t, []string{"", "invalid_field: id has more than 64 characters"}, errs)
		require.Less(t, requests[0].Size, 20)
		require.Greater(t, requests[1].Size, len(large))
	}
}

func TestDecode_RefusesAnUnreadableFrameOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		encoding frame.Encoding
		message  string
		errs     []string
	}{
		{frame.JSON, "", []string{"malformed"}},
		{frame.JSON, "\n", []string{"malformed"}},
		{frame.JSON, "{\"type\":\"ping\"}\n{", []string{"", "malformed"}},
		{frame.JSON, "{\"type\":\"ping\"} {\"type\":\"ping\"}\n{\"type\":\"ping\"}", []string{"malformed"}},
		{frame.JSON, "{\"type\":7}\n{\"type\":\"ping\"}", []string{"invalid_field", ""}},
		{frame.JSON, `{"type":"x","expires_in_ms":-1}`, []string{"invalid_field"}},
		{frame.JSON, `{"type":"x","expires_in_ms":"5"}`, []string{"invalid_field"}},
		{frame.JSON, `{"type":"x","expires_in_ms":1.5}`, []string{"invalid_field"}},
		{frame.JSON, `{"type":"x","expires_in_ms":1e400}`, []string{"invalid_field"}},
		{frame.JSON, `{"type":"x","expires_in_ms":9223372036854775807}`, []string{""}},
		{frame.Protobuf, "", []string{"malformed"}},
		{frame.Protobuf, "\x05ab", []string{"malformed"}},
		{frame.Protobuf, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", []string{"malformed"}},
		{frame.Protobuf, "\x02\xff\xff", []string{"malformed"}},
		{frame.Protobuf, string(encodeFrames(&gatewayv1.ClientFrame{Type: "ping"})) + "\x00", []string{"", "malformed"}},
		{frame.Protobuf, string(encodeFrames(&gatewayv1.ClientFrame{Type: "x", ExpiresInMs: -1})), []string{"invalid_field"}},
		{frame.Protobuf, string(encodeFrames(&gatewayv1.ClientFrame{Type: "ping", Id: strings.Repeat("é", 65)})), []string{"invalid_field"}},
		{frame.Protobuf, "\x03\x98\x06\x01", []string{"malformed"}}, // an undeclared field
	} {
		_, errs := collect(c.encoding, []byte(c.message))
		require.Len(t, errs, len(c.errs), "%q: %q", c.message, errs)
		for i := range errs {
			if c.errs[i] == "" {
				require.Empty(t, errs[i], "%q", c.message)
				continue
			}
			require.True(t, strings.HasPrefix(errs[i], c.errs[i]+": "), "%q: %q", c.message, errs[i])
		}
	}
}

func TestData_RefusesInProtobufWhatJSONRefuses(t *testing.T) {
	t.Parallel()
	encoded := func(m proto.Message) frame.Data {
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		return frame.Data{Encoding: frame.Protobuf, Bytes: b}
	}
	var r *refusal.Error
	for _, d := range []frame.Data{
		encoded(&chatv1.SendMessage{ConversationId: "g", Body: "a\x00b"}),
		encoded(&chatv1.StartGroup{Title: "t", UserIds: []string{"bob", "a\x00"}}),
		{Encoding: frame.Protobuf, Bytes: []byte("\xff")},
		{Encoding: frame.Protobuf, Bytes: []byte("\x12\x02\xff\xfe")}, // text that is not UTF-8
	} {
		m := proto.Message(&chatv1.SendMessage{})
		if bytes.Contains(d.Bytes, []byte("bob")) {
			m = &chatv1.StartGroup{}
		}
		require.ErrorAs(t, d.Read(m), &r, "%q", d.Bytes)
		require.Equal(t, refusal.InvalidField, r.Code)
	}
	require.NoError(t, encoded(&chatv1.SendMessage{ConversationId: "g", Body: "hi"}).Read(&chatv1.SendMessage{}))
}

// A Protobuf client of a later release sends a field that this release does not declare, at the top and in a nested
// message. As in JSON, only connect may have such fields.
func TestData_RefusesUndeclaredProtobufFields(t *testing.T) {
	t.Parallel()
	undeclared := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 1)
	nested := &gatewayv1.Connected{Refused: []*gatewayv1.RefusedRoom{{Room: "post:1"}}}
	nested.Refused[0].ProtoReflect().SetUnknown(undeclared)
	for _, m := range []proto.Message{&chatv1.SendMessage{ConversationId: "g", Body: "hi"}, nested} {
		encoded, err := proto.Marshal(m)
		require.NoError(t, err)
		if m != proto.Message(nested) {
			encoded = append(encoded, undeclared...)
		}
		d := frame.Data{Encoding: frame.Protobuf, Bytes: encoded}
		r, ok := refusal.Of(d.Read(m.ProtoReflect().New().Interface()))
		require.True(t, ok)
		require.Equal(t, refusal.InvalidField, r.Code)
		require.Contains(t, r.Text, "has no field with the number 900")
		require.NoError(t, d.ReadKnown(m.ProtoReflect().New().Interface()))
	}
}

// FuzzDecode checks that any message decodes to frames or refusals.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"", "{", "null", "[]", "7", `"x"`, `{"type":"ping"}`, `{"id":"1","type":"subscribe","data":null}`,
		`{"id":"1","type":"chat.send_message","command_id":"c","data":{"body":"h\u0000i"}}`, `{"id":7,"type":"x"}`,
		`{"type":"x"} {}`, "{\"type\":\"x\"}\n{}", `{"id":"1","id":"2","type":"x"}`, "\xff\xfe", `{"data":[[[[[[1]]]]]]}`,
		string(encodeFrames(&gatewayv1.ClientFrame{Type: "ping"}, &gatewayv1.ClientFrame{Id: "2"}))} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, message []byte, binary bool) {
		e := frame.JSON
		if binary {
			e = frame.Protobuf
		}
		n := 0
		for r, err := range frame.Decode(e, message) {
			n++
			if err != nil {
				if _, ok := refusal.Of(err); !ok {
					t.Fatalf("%q is answered with %v", message, err)
				}
				continue
			}
			if r.Type == "" || r.ExpiresIn < 0 {
				t.Fatalf("%q was accepted as %+v", message, r)
			}
			for _, m := range []proto.Message{&gatewayv1.Connect{}, &gatewayv1.Subscribe{}} {
				for _, err := range []error{r.Data.Read(m.ProtoReflect().New().Interface()), r.Data.ReadKnown(m)} {
					if _, ok := refusal.Of(err); err != nil && !ok {
						t.Fatalf("%q is answered with %v", message, err)
					}
				}
			}
		}
		if n == 0 || n > len(message)+1 {
			t.Fatalf("%q was decoded to %d frames", message, n)
		}
	})
}

// A client offers several subprotocols. Choose must return the encoding of the first one that it supports. If the
// client offers none, Choose must return JSON.
func TestChoose_ReturnsTheFirstKnownSubprotocol(t *testing.T) {
	t.Parallel()
	for offered, want := range map[string]string{
		"": "edumatrix.v1.json true", "edumatrix.v1.json": "edumatrix.v1.json true", "edumatrix.v1.proto": "edumatrix.v1.proto true",
		"edumatrix.v2.json edumatrix.v1.proto edumatrix.v1.json": "edumatrix.v1.proto true", "graphql-ws": "edumatrix.v1.json false",
	} {
		e, known := frame.Choose(strings.Fields(offered))
		require.Equal(t, want, fmt.Sprint(e.Subprotocol(), " ", known), offered)
	}
}

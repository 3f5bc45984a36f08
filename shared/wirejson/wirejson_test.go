package wirejson_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

func TestMarshal_IsWhatClientsRead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		m    proto.Message
		want string
	}{
		{&chatv1.SendMessage{ConversationId: "7", Body: "a\"b\\\n\u0001é✓"},
			`{"conversation_id":"7","body":"a\"b\\\n\u0001é✓"}`},
		{&chatv1.Conversation{ConversationId: "7", Kind: chatv1.Kind_KIND_DIRECT, UserIds: []string{"a", "b"},
			Version: 1 << 60, ChangedAt: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC))},
			`{"conversation_id":"7","kind":"direct","title":"","user_ids":["a","b"],"version":1152921504606846976,"changed_at":"2026-01-02T03:04:05.6Z"}`},
		{&chatv1.HistoryResponse{}, `{"messages":[],"more":false,"version":0}`},
		{&chatv1.Message{}, `{"message_id":"","version":0,"author":"","body":"","deleted":false}`},
		{&meshv1.Record{Body: []byte{1, 2, 3}}, `{"topic":"","key":"","headers":[],"body":"AQID"}`},
	} {
		got, err := wirejson.Marshal(test.m)
		if err != nil || string(got) != test.want {
			t.Errorf("got  %s %v\nwant %s", got, err, test.want)
		}
		back := test.m.ProtoReflect().New().Interface()
		if err := wirejson.Unmarshal(got, back); err != nil || !proto.Equal(back, test.m) {
			if !strings.Contains(string(got), `\u0001`) || err != nil {
				t.Errorf("%s came back as %v: %v", got, back, err)
			}
		}
	}
}

func TestUnmarshal_SaysWhatIsWrongAndWhere(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		m          proto.Message
		json, code string
		says       string
	}{
		{&chatv1.SendMessage{}, `{"conversation_id":"7","body":null}`, "", ""},
		{&chatv1.SendMessage{}, ``, refusal.Malformed, "too early"},
		{&chatv1.SendMessage{}, `{"body":`, refusal.Malformed, "too early"},
		{&chatv1.SendMessage{}, `[]`, refusal.Malformed, "a list"},
		{&chatv1.SendMessage{}, `null`, refusal.Malformed, "null"},
		{&chatv1.SendMessage{}, `{} {}`, refusal.Malformed, "follows"},
		{&chatv1.SendMessage{}, "{\"body\":\"\xff\"}", refusal.Malformed, "UTF-8"},
		{&chatv1.SendMessage{}, `{"bdy":"x"}`, refusal.InvalidField, "bdy is unknown here; known are conversation_id, body"},
		{&chatv1.SendMessage{}, `{"conversationId":"x"}`, refusal.InvalidField, `meant is "conversation_id"`},
		{&chatv1.SendMessage{}, `{"body":7}`, refusal.InvalidField, "body has to be text, not a number"},
		{&chatv1.SendMessage{}, `{"body":"a","body":"b"}`, refusal.InvalidField, "body is there twice"},
		{&chatv1.SendMessage{}, `{"body":"a\u0000b"}`, refusal.InvalidField, "U+0000"},
		{&chatv1.StartGroup{}, `{"user_ids":"bob"}`, refusal.InvalidField, "user_ids has to be a list, not text"},
		{&chatv1.StartGroup{}, `{"user_ids":["bob",null]}`, refusal.InvalidField, "user_ids[1]"},
		{&chatv1.StartGroup{}, `{"history_from_joining":"yes"}`, refusal.InvalidField, "true or false"},
		{&chatv1.HistoryRequest{}, `{"limit":1.5}`, refusal.InvalidField, "limit cannot be 1.5"},
		{&chatv1.HistoryRequest{}, `{"limit":4294967296}`, refusal.InvalidField, "limit"},
		{&chatv1.HistoryRequest{}, `{"before":"5"}`, refusal.InvalidField, "before has to be a number, not text"},
		{&chatv1.Conversation{}, `{"kind":"pair"}`, refusal.InvalidField, "kind has to be one of direct, group"},
		{&chatv1.Conversation{}, `{"changed_at":"yesterday"}`, refusal.InvalidField, "changed_at has to be an RFC 3339 time"},
		{&chatv1.HistoryResponse{}, `{"messages":[{"author":1}]}`, refusal.InvalidField, "messages[0].author"},
	} {
		err := wirejson.Unmarshal([]byte(test.json), test.m)
		if test.code == "" {
			if err != nil {
				t.Errorf("%s: %v", test.json, err)
			}
			continue
		}
		if r, ok := refusal.Of(err); !ok || r.Code != test.code || !strings.Contains(r.Text, test.says) {
			t.Errorf("%s: got %v, want %s with %q", test.json, err, test.code, test.says)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, seed := range []string{`{"messages":[{"author":"a","sent_at":"2026-01-02T03:04:05Z","version":3}],"more":true}`,
		`{"messages":[[[[`, `{"version":1e400}`, `{"messages":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &chatv1.HistoryResponse{}
		if wirejson.Unmarshal(data, m) != nil {
			return
		}
		written, err := wirejson.Marshal(m)
		if err != nil || !json.Valid(written) {
			t.Fatalf("%q was taken, and written as %q: %v", data, written, err)
		}
		again := &chatv1.HistoryResponse{}
		if err := wirejson.Unmarshal(written, again); err != nil || !proto.Equal(m, again) {
			t.Fatalf("%q came back as %v: %v", written, again, err)
		}
	})
}

var sample = &chatv1.MessageSent{ConversationId: "2b0d3c8e-5c4e-4a8e-9a53-0e6f0ab1c001",
	MessageId: "2b0d3c8e-5c4e-4a8e-9a53-0e6f0ab1c002", Body: strings.Repeat("hello there ", 10)}

func BenchmarkMarshal(b *testing.B) {
	b.Run("wirejson", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = wirejson.Marshal(sample)
		}
	})
	b.Run("protojson", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = protojson.Marshal(sample)
		}
	})
}

func BenchmarkUnmarshal(b *testing.B) {
	data, _ := wirejson.Marshal(sample)
	b.Run("wirejson", func(b *testing.B) {
		for b.Loop() {
			_ = wirejson.Unmarshal(data, &chatv1.MessageSent{})
		}
	})
	b.Run("protojson", func(b *testing.B) {
		for b.Loop() {
			_ = protojson.UnmarshalOptions{}.Unmarshal(data, &chatv1.MessageSent{})
		}
	})
}

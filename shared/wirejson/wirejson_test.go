package wirejson_test

import (
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

func TestMarshal_WritesTheEncodingForClients(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		m    proto.Message
		want string
	}{
		{&chatv1.SetTitle{ConversationId: "7", Title: "a\"b\\\n\u0001é✓"},
			`{"conversation_id":"7","title":"a\"b\\\n\u0001é✓"}`},
		{&chatv1.Conversation{ConversationId: "7", Kind: chatv1.Kind_KIND_DIRECT, UserIds: []string{"a", "b"},
			Version: 1 << 60, ChangedAt: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC))},
			`{"conversation_id":"7","kind":"direct","title":"","user_ids":["a","b"],"version":1152921504606846976,` +
				`"changed_at":"2026-01-02T03:04:05.6Z","member_count":0,"picture":"","unread_count":0,"mention_count":0,"read_up_to":0}`},
		{&chatv1.HistoryResponse{}, `{"messages":[],"more":false,"version":0}`},
		{&chatv1.Edit{}, `{"version":0,"body":""}`},
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

func TestUnmarshal_NamesTheFieldAndTheProblem(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		m          proto.Message
		json, code string
		wantText   string
	}{
		{&chatv1.SendMessage{}, `{"conversation_id":"7","body":null}`, "", ""},
		{&chatv1.SendMessage{}, ``, refusal.Malformed, "too early"},
		{&chatv1.SendMessage{}, `{"body":`, refusal.Malformed, "too early"},
		{&chatv1.SendMessage{}, `[]`, refusal.Malformed, "a list"},
		{&chatv1.SendMessage{}, `null`, refusal.Malformed, "null"},
		{&chatv1.SendMessage{}, `{} {}`, refusal.Malformed, "follows"},
		{&chatv1.SendMessage{}, "{\"body\":\"\xff\"}", refusal.Malformed, "UTF-8"},
		{&chatv1.SendMessage{}, `{"bdy":"x"}`, refusal.InvalidField, `bdy is unknown here; did you mean "body"?`},
		{&chatv1.SendMessage{}, `{"conversationId":"x"}`, refusal.InvalidField, `did you mean "conversation_id"`},
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
		if r, ok := refusal.Of(err); !ok || r.Code != test.code || !strings.Contains(r.Text, test.wantText) {
			t.Errorf("%s: got %v, want %s with %q", test.json, err, test.code, test.wantText)
		}
	}
}

var sample = &chatv1.MessageSent{ConversationId: "2b0d3c8e-5c4e-4a8e-9a53-0e6f0ab1c001",
	MessageId: "2b0d3c8e-5c4e-4a8e-9a53-0e6f0ab1c002", Body: strings.Repeat("hello there ", 10)}

// page is a page of a conversation's history. Of all responses that clients request often, it is the largest.
var page = func() *chatv1.HistoryResponse {
	p := &chatv1.HistoryResponse{More: true, Version: 1234}
	for i := range 50 {
		p.Messages = append(p.Messages, &chatv1.Message{MessageId: sample.MessageId, Version: int64(1000 + i), Author: "alice",
			Body: "a line of text, \"quoted\" – with ümlauts\n", SentAt: timestamppb.New(time.Unix(1_760_000_000, 123_456_000))})
	}
	return p
}()

func BenchmarkMarshal(b *testing.B) {
	for name, m := range map[string]proto.Message{"message": sample, "page": page} {
		b.Run(name+"/wirejson", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = wirejson.Marshal(m)
			}
		})
		b.Run(name+"/protojson", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = protojson.Marshal(m)
			}
		})
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	for name, m := range map[string]proto.Message{"message": sample, "page": page} {
		data, err := wirejson.Marshal(m)
		if err != nil {
			b.Fatal(err)
		}
		into := m.ProtoReflect().Type()
		b.Run(name+"/wirejson", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := wirejson.Unmarshal(data, into.New().Interface()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/protojson", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := protojson.Unmarshal(data, into.New().Interface()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

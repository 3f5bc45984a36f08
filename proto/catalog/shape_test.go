package catalog

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

func TestCheck_BoundsWholeNumbers(t *testing.T) {
	history, _ := load(t).Query("chat.history")
	request := func(set func(r *chatv1.HistoryRequest)) error {
		r := &chatv1.HistoryRequest{ConversationId: "7"}
		set(r)
		return history.Check(r)
	}
	for _, fine := range []func(r *chatv1.HistoryRequest){
		func(*chatv1.HistoryRequest) {},
		func(r *chatv1.HistoryRequest) { r.Limit = proto.Int32(1) },
		func(r *chatv1.HistoryRequest) { r.Limit = proto.Int32(200) },
		func(r *chatv1.HistoryRequest) { r.After = proto.Int64(0) },
		func(r *chatv1.HistoryRequest) { r.Before = proto.Int64(1 << 62) },
	} {
		require.NoError(t, request(fine))
	}
	for _, test := range []struct {
		set         func(r *chatv1.HistoryRequest)
		field, text string
	}{
		{func(r *chatv1.HistoryRequest) { r.Limit = proto.Int32(0) }, "limit", "has to be from 1 to 200"},
		{func(r *chatv1.HistoryRequest) { r.Limit = proto.Int32(201) }, "limit", "has to be from 1 to 200"},
		{func(r *chatv1.HistoryRequest) { r.After = proto.Int64(-1) }, "after", "has to be 0 or more"},
	} {
		r, ok := refusal.Of(request(test.set))
		require.True(t, ok)
		require.Equal(t, refusal.InvalidField, r.Code)
		require.Equal(t, test.field, r.Field)
		require.Contains(t, r.Text, test.text)
	}
}

// An optional field of a subject may be absent. If it is present, it must be an id.
func TestCheck_OfAnOptionalFieldInASubject(t *testing.T) {
	send, _ := load(t).Command("chat.send_message")
	m := &chatv1.SendMessage{ConversationId: "7", Body: "hi"}
	require.NoError(t, send.Check(m))
	require.Empty(t, send.Subject(m, Origin{}))
	m.ReplyTo = proto.String("m")
	require.NoError(t, send.Check(m))
	require.Equal(t, "m", send.Subject(m, Origin{}))
	for _, invalid := range []string{"", "a b"} {
		m.ReplyTo = &invalid
		r, ok := refusal.Of(send.Check(m))
		require.True(t, ok)
		require.Equal(t, "reply_to", r.Field)
	}
}

// If a shape has an option that does not apply to the type of its field, the error must name the field and the option.
func TestCheckShapes_ReportsBoundsThatWouldBeIgnored(t *testing.T) {
	for _, test := range []struct {
		kind     descriptorpb.FieldDescriptorProto_Type
		repeated bool
		shape    *routingv1.Shape
		wantText string // empty if the shape is valid
	}{
		{descriptorpb.FieldDescriptorProto_TYPE_INT32, false, &routingv1.Shape{Min: proto.Int64(1)}, ""},
		{descriptorpb.FieldDescriptorProto_TYPE_UINT32, false, &routingv1.Shape{Max: proto.Int64(1)}, ""},
		{descriptorpb.FieldDescriptorProto_TYPE_STRING, true, &routingv1.Shape{Id: true, MaxItems: 2}, ""},
		{descriptorpb.FieldDescriptorProto_TYPE_STRING, false, &routingv1.Shape{Max: proto.Int64(1)}, "min or max"},
		{descriptorpb.FieldDescriptorProto_TYPE_UINT64, false, &routingv1.Shape{Max: proto.Int64(1)}, "min or max"},
		{descriptorpb.FieldDescriptorProto_TYPE_INT32, true, &routingv1.Shape{Min: proto.Int64(1)}, "min or max"},
		{descriptorpb.FieldDescriptorProto_TYPE_INT32, false, &routingv1.Shape{MaxChars: 1}, "id or max_chars"},
		{descriptorpb.FieldDescriptorProto_TYPE_STRING, false, &routingv1.Shape{MaxItems: 1}, "max_items"},
		{descriptorpb.FieldDescriptorProto_TYPE_INT32, true, &routingv1.Shape{Required: true}, ""},
		{descriptorpb.FieldDescriptorProto_TYPE_INT32, false, &routingv1.Shape{Required: true}, "required"},
	} {
		options := &descriptorpb.FieldOptions{}
		proto.SetExtension(options, routingv1.E_Shape, test.shape)
		label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		if test.repeated {
			label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
		}
		file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{Name: proto.String("x.proto"), Syntax: proto.String("proto3"),
			MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("X"), Field: []*descriptorpb.FieldDescriptorProto{{
				Name: proto.String("value"), Number: proto.Int32(1), Type: &test.kind, Label: &label, Options: options}}}},
		}, protoregistry.GlobalFiles)
		require.NoError(t, err)
		problems := checkShapes(file.Messages().Get(0))
		if test.wantText == "" {
			require.Empty(t, problems)
			continue
		}
		require.Len(t, problems, 1)
		require.ErrorContains(t, problems[0], "X.value: the option "+test.wantText+" does not apply")
	}
}

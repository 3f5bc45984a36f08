package gateway

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func unmarshal(body []byte, m proto.Message) error { return proto.Unmarshal(body, m) }

// field returns the text in a field of a message. It uses reflection, because the gateway does not import the message's
// Go type.
func field(m proto.Message, name protoreflect.Name) string {
	r := m.ProtoReflect()
	return r.Get(r.Descriptor().Fields().ByName(name)).String()
}

package gateway

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func unmarshal(body []byte, m proto.Message) error { return proto.Unmarshal(body, m) }

// field reads a text of a message whose type the gateway does not name.
func field(m proto.Message, name protoreflect.Name) string {
	r := m.ProtoReflect()
	return r.Get(r.Descriptor().Fields().ByName(name)).String()
}

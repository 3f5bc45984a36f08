package catalog

import (
	"cmp"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

func (c *Catalog) readSignal(owner string, mt protoreflect.MessageType, o *routingv1.Signal) error {
	d := mt.Descriptor()
	if c.taken(o.Name) {
		return fmt.Errorf("%s: the name %s is used already", d.FullName(), o.Name)
	}
	if !strings.HasPrefix(o.Name, owner+".") {
		return fmt.Errorf("%s: the name %q does not begin with %s", d.FullName(), o.Name, owner+".")
	}
	room, err := parseTemplate(d, o.Room)
	if err != nil {
		return fmt.Errorf("%s: room: %w", d.FullName(), err)
	}
	if o.Room == "" {
		return fmt.Errorf("%s: a signal needs a room", d.FullName())
	}
	c.signals[o.Name] = &Signal{Name: o.Name, Owner: owner, Bytes: int(cmp.Or(o.Bytes, 1024)),
		Rate: int(cmp.Or(o.Rate, 2)), Type: mt, room: room}
	return nil
}

// Check checks the fields of a signal as CheckShape does. The error is a refusal.
func (s *Signal) Check(m proto.Message) error { return CheckShape(m) }

// Room returns the room of a signal. It returns false if a field in the room's address is not an id.
func (s *Signal) Room(m proto.Message, actor string) (room string, ok bool) {
	for _, h := range s.room.placeholders {
		if h.field != nil && !ValidID(m.ProtoReflect().Get(h.field).String()) {
			return "", false
		}
	}
	return s.room.one(m, Origin{Actor: actor}), true
}

// taken reports whether a name is that of a command, an event, a query or a signal.
func (c *Catalog) taken(name string) bool {
	return c.commands[name] != nil || c.events[name] != nil || c.queries[name] != nil || c.signals[name] != nil
}

package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// direction is the direction in which a message travels.
type direction int

const (
	// sent is the direction of frames from clients. Only fields that are declared as required, fields of an address,
	// and the fields in the variable required must be present.
	sent direction = iota
	// received is the direction of frames from gateways. All texts, numbers, truth values, lists and maps are present,
	// even if they are empty. Messages, enums and optional fields may be absent, except those in the variable required.
	received
)

// field is a field of a message in one direction.
type field struct {
	desc     protoreflect.FieldDescriptor
	name     string
	comment  string
	required bool // whether a sent message must have the field, or a received message always has it
	address  bool // whether the field is part of an address or a subject, so that it is not empty if it is present
	id       bool
	maxChars int // 0 if there is no limit
	maxItems int // 0 if there is no limit
	// The smallest and the largest value of a number; nil if only the type of the field limits the value.
	min, max *int64
}

// required contains, for each direction, the fields of frames that must be present although their types allow absence:
// the fields that a client must send, and the fields that a gateway always sends. Required fields of commands and
// queries are declared by an option. Frames have no such option, because package catalog does not check frames. The
// tests of the gateway check the gateway's frames against this list.
var required = map[direction][]protoreflect.FullName{
	sent: {
		"edumatrix.gateway.v1.Authenticate.token", "edumatrix.gateway.v1.ClientFrame.type",
		"edumatrix.gateway.v1.Subscribe.rooms", "edumatrix.gateway.v1.Unsubscribe.rooms",
	},
	received: {
		"edumatrix.gateway.v1.Closing.error", "edumatrix.gateway.v1.Connected.limits",
		"edumatrix.gateway.v1.Connected.server_time", "edumatrix.gateway.v1.Event.data", "edumatrix.gateway.v1.Event.time",
		"edumatrix.gateway.v1.Failure.error", "edumatrix.gateway.v1.LateOutcome.outcome",
		"edumatrix.gateway.v1.Outcome.kind", "edumatrix.gateway.v1.RefusedRoom.error", "edumatrix.gateway.v1.Signal.data",
		"edumatrix.gateway.v1.Unsubscribed.error",
	},
}

func (d *declarations) fields(m protoreflect.MessageDescriptor, dir direction) (all []field) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		shape := proto.GetExtension(f.Options(), routingv1.E_Shape).(*routingv1.Shape)
		v := field{desc: f, name: string(f.Name()), comment: d.comments[f.FullName()], maxChars: int(shape.GetMaxChars()),
			maxItems: int(shape.GetMaxItems()), id: shape.GetId(), required: slices.Contains(required[dir], f.FullName())}
		if shape != nil {
			v.min, v.max = shape.Min, shape.Max
		}
		if dir == sent {
			address := slices.Contains(addressFields(m), v.name)
			v.required = v.required || shape.GetRequired() || address && !f.HasPresence() ||
				!f.HasPresence() && shape.GetMin() > 0 // an absent number is checked as 0
			v.id, v.address = v.id || address, address
		} else {
			v.required = v.required || f.IsList() || f.IsMap() || !f.HasPresence() && f.Kind() != protoreflect.EnumKind
		}
		all = append(all, v)
	}
	return all
}

var hole = regexp.MustCompile(`\{(?:\$pair:)?([a-z][a-z0-9_]*)\}`)

// addressFields returns the names of the fields from which the addresses of a command or a signal, or the subject of a
// command, are derived. The values of these fields must be ids. They are required, except that an optional field of a
// subject may be absent.
func addressFields(m protoreflect.MessageDescriptor) (names []string) {
	c := proto.GetExtension(m.Options(), routingv1.E_Command).(*routingv1.Command)
	s := proto.GetExtension(m.Options(), routingv1.E_Signal).(*routingv1.Signal)
	for _, template := range []string{c.GetStream(), c.GetSubject(), c.GetMemberOf(),
		c.GetRequires().GetStream(), c.GetRequires().GetSubject(), s.GetRoom()} {
		for _, found := range hole.FindAllStringSubmatch(template, -1) {
			names = append(names, found[1])
		}
	}
	return names
}

// kind describes the JSON type of a field in words.
func (f field) kind() string {
	one := f.single()
	switch {
	case f.desc.IsMap():
		return "object"
	case f.desc.IsList():
		return "list of " + one
	}
	return one
}

func (f field) single() string {
	list := f.desc.IsList()
	plural := func(one, many string) string {
		if list {
			return many
		}
		return one
	}
	switch f.desc.Kind() {
	case protoreflect.StringKind:
		return plural("text", "texts")
	case protoreflect.BoolKind:
		return plural("true or false", "true or false")
	case protoreflect.EnumKind:
		return linkTo(typeName(f.desc.Enum()))
	case protoreflect.BytesKind:
		if f.name == "data" {
			return "object"
		}
		return plural("text, base64", "texts, base64")
	case protoreflect.MessageKind, protoreflect.GroupKind:
		switch f.desc.Message().FullName() {
		case timestampName:
			return plural("time", "times")
		case durationName:
			return plural("seconds", "seconds")
		}
		return linkTo(typeName(f.desc.Message()))
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return plural("number", "numbers")
	}
	return plural("whole number", "whole numbers")
}

const (
	timestampName = "google.protobuf.Timestamp"
	durationName  = "google.protobuf.Duration"
)

// bounds describes the declared limits of a field's values in words.
func (f field) bounds() string {
	var parts []string
	if f.maxItems > 0 {
		parts = append(parts, "at most "+count(f.maxItems))
	}
	switch {
	case f.id && f.desc.IsList():
		parts = append(parts, "[ids](#ids)")
	case f.id:
		parts = append(parts, "an [id](#ids)")
	case f.maxChars > 0:
		parts = append(parts, "at most "+count(f.maxChars)+" characters")
	case f.min != nil && f.max != nil:
		parts = append(parts, "from "+count(*f.min)+" to "+count(*f.max))
	case f.min != nil:
		parts = append(parts, count(*f.min)+" or more")
	case f.max != nil:
		parts = append(parts, "at most "+count(*f.max))
	}
	return strings.Join(parts, ", ")
}

// count writes a number with commas: 8,000.
func count[N int | int64](n N) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
}

// typeName returns the name of a message or an enum in the reference, such as "chat.Conversation". Only names of the
// gateway's package have no prefix: "Limits".
func typeName(d protoreflect.Descriptor) string {
	if owner := ownerOf(d); owner != "gateway" {
		return owner + "." + string(d.Name())
	}
	return string(d.Name())
}

func ownerOf(d protoreflect.Descriptor) string {
	return strings.Split(string(d.ParentFile().Package()), ".")[1]
}

// words returns the values of an enum except the unspecified one, with their words in JSON, such as "direct" for
// KIND_DIRECT.
func words(e protoreflect.EnumDescriptor) (all []string, values []protoreflect.EnumValueDescriptor) {
	prefix := ""
	if zero := e.Values().ByNumber(0); zero != nil {
		prefix, _ = strings.CutSuffix(string(zero.Name()), "UNSPECIFIED")
	}
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			all = append(all, strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix)))
			values = append(values, v)
		}
	}
	return all, values
}

// inWords returns the template of an address in a readable form, such as "conversation:<conversation_id>", or
// "conversation:<id>" if the mesh generates the id.
func inWords(template string) string {
	return regexp.MustCompile(`\{([^}]+)\}`).ReplaceAllStringFunc(template, func(h string) string {
		switch name := h[1 : len(h)-1]; {
		case name == "$actor":
			return "<the user>"
		case strings.HasPrefix(name, "$"):
			return "<id>"
		default:
			return "<" + name + ">"
		}
	})
}

func optionsOf(e *catalog.Event) *routingv1.Event {
	return proto.GetExtension(e.Type.Descriptor().Options(), routingv1.E_Event).(*routingv1.Event)
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// object is a JSON object.
type object map[string]any

// encode encodes a document. The keys of objects are sorted, so the same document always has the same text.
func encode(document object) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(document)
	return b.Bytes(), err
}

// schemas are the JSON schemas of messages, by name. They use only keywords that JSON Schema draft 7 (for AsyncAPI 3.0)
// and 2020-12 (for OpenAPI 3.1) define in the same way.
type schemas struct {
	*declarations
	byName object
	err    error // the first problem
}

func (d *declarations) newSchemas() *schemas { return &schemas{declarations: d, byName: object{}} }

// ref adds the schema of a message, and those of the messages in its fields. It returns a reference to the schema of
// the message itself.
func (s *schemas) ref(m protoreflect.MessageDescriptor, dir direction, suffix string) object {
	name := schemaName(m) + suffix
	ref := object{"$ref": "#/components/schemas/" + name}
	before, known := s.byName[name]
	if known && before == nil { // the message contains itself, and its schema is not complete yet
		return ref
	}
	s.byName[name] = nil
	schema := s.message(m, dir)
	if known && !reflect.DeepEqual(before, schema) && s.err == nil {
		s.err = fmt.Errorf("%s has two schemas: clients send and receive it with different fields", name)
	}
	s.byName[name] = schema
	return ref
}

// schemaName returns the name of a message's schema, such as "ChatConversation". Only schemas of the gateway's messages
// have no prefix: "Limits".
func schemaName(m protoreflect.MessageDescriptor) string {
	name := string(m.Name())
	if owner := ownerOf(m); owner != "gateway" {
		name = strings.ToUpper(owner[:1]) + owner[1:] + name
	}
	return name
}

func (s *schemas) message(m protoreflect.MessageDescriptor, dir direction) object {
	properties, always := object{}, []string{}
	for _, f := range s.fields(m, dir) {
		properties[f.name] = s.field(f, dir)
		if f.required {
			always = append(always, f.name)
		}
	}
	schema := object{"type": "object", "properties": properties}
	if len(always) > 0 {
		schema["required"] = always
	}
	if c := s.comments[m.FullName()]; c != "" {
		schema["description"] = c
	}
	if dir == sent && m.FullName() != "edumatrix.gateway.v1.Connect" {
		schema["additionalProperties"] = false
	}
	return schema
}

func (s *schemas) field(f field, dir direction) object {
	var schema object
	switch {
	case f.desc.IsMap():
		value := f
		value.desc, value.comment = f.desc.MapValue(), ""
		schema = object{"type": "object", "additionalProperties": s.single(value, dir)}
	case f.desc.IsList():
		schema = object{"type": "array", "items": s.single(f, dir)}
		if f.maxItems > 0 {
			schema["maxItems"] = f.maxItems
		}
		if dir == sent && f.required {
			schema["minItems"] = 1
		}
	default:
		schema = s.single(f, dir)
		if f.min != nil {
			schema["minimum"] = *f.min
		}
		if f.max != nil {
			schema["maximum"] = *f.max
		}
	}
	// Draft 7 of JSON Schema ignores a description beside a reference.
	if _, isRef := schema["$ref"]; !isRef && f.comment != "" {
		schema["description"] = f.comment
	}
	return schema
}

func (s *schemas) single(f field, dir direction) object {
	switch f.desc.Kind() {
	case protoreflect.StringKind:
		return text(f, dir)
	case protoreflect.BoolKind:
		return object{"type": "boolean"}
	case protoreflect.EnumKind:
		known, _ := words(f.desc.Enum())
		return object{"type": "string", "enum": known}
	case protoreflect.BytesKind:
		if f.name == "data" {
			return object{"type": "object"}
		}
		return object{"type": "string", "contentEncoding": "base64"}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return object{"type": "number"}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return object{"type": "integer", "minimum": 0}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		switch f.desc.Message().FullName() {
		case timestampName:
			return object{"type": "string", "format": "date-time"}
		case durationName:
			return object{"type": "number"}
		}
		suffix := ""
		if dir == sent {
			suffix = "Sent" // a sent message has other required fields than a received one
		}
		return s.ref(f.desc.Message(), dir, suffix)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return object{"type": "integer", "format": "int32"}
	}
	return object{"type": "integer", "format": "int64"}
}

// text returns the schema of a text field. In a sent message, required texts, texts in an address and the texts in a
// list must not be empty.
func text(f field, dir direction) object {
	schema := object{"type": "string"}
	if dir == received {
		return schema
	}
	least := 0
	if f.required || f.address || f.desc.IsList() {
		least = 1
	}
	if f.id {
		schema["pattern"] = fmt.Sprintf(`^[A-Za-z0-9._@|:+-]{%d,%d}$`, least, catalog.MaxID)
		return schema
	}
	if least > 0 {
		schema["minLength"] = least
	}
	if f.maxChars > 0 {
		schema["maxLength"] = f.maxChars
	}
	return schema
}

// constant returns the schema of one constant text. It uses the keyword enum, which all versions of JSON Schema define,
// and not the keyword const.
func constant(text string) object { return object{"type": "string", "enum": []string{text}} }

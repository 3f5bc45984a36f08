package catalog

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/google/uuid"
)

// made is the name space of all ids that are made from others, so that a repeat makes the same one.
var made = uuid.MustParse("5f0a7a3e-3a4f-5d8e-9c55-6f1a1e0c7d21")

// Origin is what addresses are made of beside a message's own fields.
type Origin struct {
	Actor     string
	CommandID string
}

// NewID is the id of what a command makes: the same however often it is sent, another for every user.
func (o Origin) NewID() string {
	return uuid.NewSHA1(made, []byte("new\x00"+o.Actor+"\x00"+o.CommandID)).String()
}

// PairID is the id of what two users have in common, whichever of the two asks.
func PairID(a, b string) string {
	if a > b {
		a, b = b, a
	}
	return uuid.NewSHA1(made, []byte("pair\x00"+a+"\x00"+b)).String()
}

var (
	escapeID   = strings.NewReplacer("%", "%25", ":", "%3A")
	unescapeID = strings.NewReplacer("%25", "%", "%3A", ":")
)

// EscapeID returns an id as it stands in the address of a stream or a room, where a colon separates: "f:1:ann" becomes
// "f%3A1%3Aann". Most ids have no colon and stay as they are. No two ids become the same.
func EscapeID(id string) string {
	if !strings.ContainsAny(id, ":%") {
		return id
	}
	return escapeID.Replace(id)
}

// Address returns the address of a stream or a room, such as "presence:ann".
func Address(kind, id string) string { return kind + ":" + EscapeID(id) }

// UserRoom returns the room of what concerns one user alone.
func UserRoom(id string) string { return Address("user", id) }

// UserOfRoom returns whose room it is. It reports false for rooms of other kinds.
func UserOfRoom(room string) (id string, ok bool) {
	escaped, ok := strings.CutPrefix(room, "user:")
	if !ok || !strings.Contains(escaped, "%") {
		return escaped, ok
	}
	return unescapeID.Replace(escaped), true
}

// SplitAddress returns what an address made by Address was made of. It reports false if there is no such address.
func SplitAddress(address string) (kind, id string, ok bool) {
	kind, escaped, found := strings.Cut(address, ":")
	id = unescapeID.Replace(escaped)
	return kind, id, found && ValidID(id) && EscapeID(id) == escaped
}

// template is a parsed address such as "conversation:{conversation_id}".
type template struct {
	source string
	prefix string
	kind   holeKind
	field  protoreflect.FieldDescriptor
	suffix string
}

type holeKind int

const (
	holeNone holeKind = iota
	holeField
	holeActor
	holeNew
	holePair
)

func parseTemplate(d protoreflect.MessageDescriptor, source string) (template, error) {
	t := template{source: source}
	prefix, rest, found := strings.Cut(source, "{")
	t.prefix = prefix
	if !found {
		return t, nil
	}
	hole, suffix, closed := strings.Cut(rest, "}")
	if !closed || strings.Contains(suffix, "{") {
		return t, fmt.Errorf("%q: one {hole} at most, and closed", source)
	}
	t.suffix = suffix
	name := hole
	switch {
	case hole == "$actor":
		t.kind = holeActor
		return t, nil
	case hole == "$new":
		t.kind = holeNew
		return t, nil
	case strings.HasPrefix(hole, "$pair:"):
		t.kind, name = holePair, strings.TrimPrefix(hole, "$pair:")
	default:
		t.kind = holeField
	}
	t.field = d.Fields().ByName(protoreflect.Name(name))
	if t.field == nil || t.field.Kind() != protoreflect.StringKind {
		return t, fmt.Errorf("%q: %s has no text field %q", source, d.FullName(), name)
	}
	return t, nil
}

// fill returns the template with an id in its hole. A template that is nothing but a hole stands for the id itself.
func (t template) fill(id string) string {
	if t.prefix == "" && t.suffix == "" {
		return id
	}
	return t.prefix + EscapeID(id) + t.suffix
}

// each gives the addresses that a message names: one, or one for each value of a repeated field.
func (t template) each(m proto.Message, o Origin) []string {
	switch t.kind {
	case holeActor:
		return []string{t.fill(o.Actor)}
	case holeNew:
		return []string{t.prefix + o.NewID() + t.suffix}
	case holePair:
		return []string{t.prefix + PairID(o.Actor, m.ProtoReflect().Get(t.field).String()) + t.suffix}
	case holeField:
		v := m.ProtoReflect().Get(t.field)
		if !t.field.IsList() {
			return []string{t.fill(v.String())}
		}
		var all []string
		for i := range v.List().Len() {
			all = append(all, t.fill(v.List().Get(i).String()))
		}
		return all
	default:
		if t.source == "" {
			return nil
		}
		return []string{t.source}
	}
}

func (t template) one(m proto.Message, o Origin) string {
	if all := t.each(m, o); len(all) == 1 {
		return all[0]
	}
	return ""
}

type membership struct{ room, user template }

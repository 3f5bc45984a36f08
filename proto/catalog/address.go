package catalog

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// made is the name space of all ids that are made from others, so that a repeat makes the same one.
var made = uuid.MustParse("5f0a7a3e-3a4f-5d8e-9c55-6f1a1e0c7d21")

// TimerActor sends the commands of timers. No user has this name, as it is not an id.
const TimerActor = "$timer"

// Origin is where a command comes from: what addresses are made of beside a message's own fields, and what an aggregate
// knows of the moment at which it decides.
type Origin struct {
	Actor     string
	CommandID string
	// At is the log's clock when the command is decided, alike for all commands that are decided together. It is not before
	// any event that the state was made of, and no event that the command leads to is recorded as earlier.
	At time.Time
	// Version of the stream that the command is decided on; 0: the stream does not exist.
	Version int64
}

// Fact is what an aggregate may know of an event beside its body.
type Fact struct {
	Actor   string
	Version int64 // of the stream
	at      time.Time
	read    *bool
}

// NewFact makes a Fact. If read is not nil, it is set to true once the time is asked for: the time of an event that was
// only just decided may still be corrected when the event is recorded.
func NewFact(actor string, version int64, at time.Time, read *bool) Fact {
	return Fact{Actor: actor, Version: version, at: at, read: read}
}

// At returns when the event was recorded, by the log's clock.
func (f Fact) At() time.Time {
	if f.read != nil {
		*f.read = true
	}
	return f.at
}

// Expecting is an event for another stream of the same service, which is appended only where that stream is at Version
// (0: it must not exist). Where it is not, the command that led to it is refused with Otherwise.
type Expecting struct {
	proto.Message
	Version   int64
	Otherwise *refusal.Error
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

// template is a parsed address such as "conversation:{conversation_id}": text with holes in it.
type template struct {
	source string
	text   []string // around the holes, one more than those
	holes  []hole
}

type hole struct {
	kind  holeKind
	field protoreflect.FieldDescriptor // of holeField and holePair
}

type holeKind int

const (
	holeField holeKind = iota
	holeActor
	holeNew
	holePair
)

func parseTemplate(d protoreflect.MessageDescriptor, source string) (template, error) {
	t := template{source: source}
	lists := 0
	for rest := source; ; {
		text, after, found := strings.Cut(rest, "{")
		t.text = append(t.text, text)
		if !found {
			return t, nil
		}
		name, following, closed := strings.Cut(after, "}")
		if !closed {
			return t, fmt.Errorf("%q: a {hole} is not closed", source)
		}
		if len(t.holes) > 0 && text == "" {
			return t, fmt.Errorf("%q: two holes need a text between them", source)
		}
		h, err := parseHole(d, source, name)
		if err != nil {
			return t, err
		}
		if h.field != nil && h.field.IsList() {
			if lists++; lists > 1 || h.kind == holePair {
				return t, fmt.Errorf("%q: at most one {hole} may be of a repeated field, and no $pair", source)
			}
		}
		t.holes, rest = append(t.holes, h), following
	}
}

func parseHole(d protoreflect.MessageDescriptor, source, name string) (h hole, err error) {
	switch {
	case name == "$actor":
		return hole{kind: holeActor}, nil
	case name == "$new":
		return hole{kind: holeNew}, nil
	case strings.HasPrefix(name, "$pair:"):
		h.kind, name = holePair, strings.TrimPrefix(name, "$pair:")
	}
	h.field = d.Fields().ByName(protoreflect.Name(name))
	if h.field == nil || h.field.Kind() != protoreflect.StringKind {
		return h, fmt.Errorf("%q: %s has no text field %q", source, d.FullName(), name)
	}
	return h, nil
}

// kind is what stands before the first colon: "conversation" of "conversation:{conversation_id}".
func (t template) kind() string { return KindOf(t.source) }

// KindOf returns the kind of a stream or room: "conversation" of "conversation:7".
func KindOf(address string) string {
	kind, _, _ := strings.Cut(address, ":")
	return kind
}

// each returns the addresses that a message names: one, or one for each value of a repeated field.
func (t template) each(m proto.Message, o Origin) []string {
	if t.source == "" {
		return nil
	}
	bare := len(t.holes) == 1 && t.text[0] == "" && t.text[1] == "" // it stands for the id itself
	all := []string{t.text[0]}
	for i, h := range t.holes {
		values := h.values(m, o)
		filled := make([]string, 0, len(all)*len(values))
		for _, before := range all {
			for _, v := range values {
				if !bare {
					v = EscapeID(v)
				}
				filled = append(filled, before+v+t.text[i+1])
			}
		}
		all = filled
	}
	return all
}

func (h hole) values(m proto.Message, o Origin) []string {
	switch h.kind {
	case holeActor:
		return []string{o.Actor}
	case holeNew:
		return []string{o.NewID()}
	case holePair:
		return []string{PairID(o.Actor, m.ProtoReflect().Get(h.field).String())}
	}
	v := m.ProtoReflect().Get(h.field)
	if !h.field.IsList() {
		return []string{v.String()}
	}
	all := make([]string, v.List().Len())
	for i := range all {
		all[i] = v.List().Get(i).String()
	}
	return all
}

func (t template) one(m proto.Message, o Origin) string {
	if all := t.each(m, o); len(all) == 1 {
		return all[0]
	}
	return ""
}

type membership struct{ room, user template }

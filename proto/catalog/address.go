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

// idNamespace is the namespace of all derived ids. A repeated derivation gives the same id.
var idNamespace = uuid.MustParse("5f0a7a3e-3a4f-5d8e-9c55-6f1a1e0c7d21")

// TimerActor is the actor of the commands of timers. It is not a valid id, so no user has this name.
const TimerActor = "$timer"

// Origin describes the command that is decided. Some placeholders of addresses stand for the actor, or for an id that
// is derived from the actor and the command id.
type Origin struct {
	Actor     string
	CommandID string
	// At is the time of the log's clock when the command is decided. Commands that are decided together have the same
	// time. At is never before the time of an event in the stream's state, and never after the time of the command's
	// own events.
	At time.Time
	// Version is the version of the stream when the command is decided; 0 if the stream does not exist.
	Version Version
	// Room has facts about the room in the command's member_of. It is zero unless the command declares
	// count_members_up_to.
	Room Room
}

// Room has facts about a room, as they were shortly before a decision.
type Room struct {
	Version Version // of the room's stream; 0 if the stream does not exist
	Joined  Version // the version at which the actor became a member; 0 if the actor is not a member
	Members int     // the number of members, at most the declared bound
}

// Fact contains the properties of an event, besides its body, that an aggregate may use.
type Fact struct {
	Actor   string
	Version Version // the version of the event in its stream
	at      time.Time
	read    *bool // set to true by At; may be nil
}

// NewFact returns a Fact. If the pointer read is not nil, At sets *read to true. So the caller can detect that a state
// depends on the time of an event that is not committed yet. Such a time may still change.
func NewFact(actor string, version Version, at time.Time, read *bool) Fact {
	return Fact{Actor: actor, Version: version, at: at, read: read}
}

// At returns the time of the log's clock at which the event was recorded.
func (f Fact) At() time.Time {
	if f.read != nil {
		*f.read = true
	}
	return f.at
}

// Expecting is an event for another stream of the same service, together with the version that this other stream must
// have (0 if the stream must not exist). If it has a different version, the command is refused with the error in the
// field Otherwise.
type Expecting struct {
	proto.Message
	Version   Version
	Otherwise *refusal.Error
}

// NewID returns the id of the object that a command creates, such as a message. The id is derived from the actor and
// the command id. So it is the same however often the command is sent, and commands of different users have different
// ids, even if their command ids are equal.
func (o Origin) NewID() string {
	return uuid.NewSHA1(idNamespace, []byte("new\x00"+o.Actor+"\x00"+o.CommandID)).String()
}

// PairID returns the id of an object that belongs to two users, such as their direct conversation. The order of the
// users does not matter.
func PairID(a, b string) string {
	if a > b {
		a, b = b, a
	}
	return uuid.NewSHA1(idNamespace, []byte("pair\x00"+a+"\x00"+b)).String()
}

var (
	escapeID   = strings.NewReplacer("%", "%25", ":", "%3A")
	unescapeID = strings.NewReplacer("%25", "%", "%3A", ":")
)

// EscapeID escapes an id for the address of a stream or a room, in which colons separate the parts: "f:1:ann" becomes
// "f%3A1%3Aann". Most ids have no colon and are unchanged. Different ids stay different.
func EscapeID(id string) string {
	if !strings.ContainsAny(id, ":%") {
		return id
	}
	return escapeID.Replace(id)
}

// Address returns the address of a stream or a room, such as "presence:ann".
func Address(kind, id string) string { return kind + ":" + EscapeID(id) }

// UserRoom returns the room for events that concern only one user.
func UserRoom(id string) string { return Address("user", id) }

// UserOfRoom returns the user of a user's room. It returns false for rooms of other kinds.
func UserOfRoom(room string) (id string, ok bool) {
	escaped, ok := strings.CutPrefix(room, "user:")
	if !ok || !strings.Contains(escaped, "%") {
		return escaped, ok
	}
	return unescapeID.Replace(escaped), true
}

// SplitAddress returns the kind and the id of an address that Address returned. It returns false if the part after the
// first colon is not exactly one escaped id.
func SplitAddress(address string) (kind, id string, ok bool) {
	kind, escaped, found := strings.Cut(address, ":")
	id = unescapeID.Replace(escaped)
	return kind, id, found && ValidID(id) && EscapeID(id) == escaped
}

// template is a parsed template of an address such as "conversation:{conversation_id}": texts with placeholders between
// them.
type template struct {
	source       string
	text         []string // the texts around the placeholders; there is one more text than placeholders
	placeholders []placeholder
}

type placeholder struct {
	kind  placeholderKind
	field protoreflect.FieldDescriptor // set for placeholderField and placeholderPair
}

type placeholderKind int

const (
	placeholderField placeholderKind = iota
	placeholderActor
	placeholderNew
	placeholderPair
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
			return t, fmt.Errorf("%q: a {placeholder} is not closed", source)
		}
		if len(t.placeholders) > 0 && text == "" {
			return t, fmt.Errorf("%q: two placeholders need a text between them", source)
		}
		h, err := parsePlaceholder(d, source, name)
		if err != nil {
			return t, err
		}
		if h.field != nil && h.field.IsList() {
			if lists++; lists > 1 || h.kind == placeholderPair {
				return t, fmt.Errorf("%q: at most one {placeholder} may name a repeated field, and {$pair:…} may not", source)
			}
		}
		t.placeholders, rest = append(t.placeholders, h), following
	}
}

func parsePlaceholder(d protoreflect.MessageDescriptor, source, name string) (h placeholder, err error) {
	switch {
	case name == "$actor":
		return placeholder{kind: placeholderActor}, nil
	case name == "$new":
		return placeholder{kind: placeholderNew}, nil
	case strings.HasPrefix(name, "$pair:"):
		h.kind, name = placeholderPair, strings.TrimPrefix(name, "$pair:")
	}
	h.field = d.Fields().ByName(protoreflect.Name(name))
	if h.field == nil || h.field.Kind() != protoreflect.StringKind {
		return h, fmt.Errorf("%q: %s has no text field %q", source, d.FullName(), name)
	}
	return h, nil
}

// kind returns the text before the first colon: "conversation" of "conversation:{conversation_id}".
func (t template) kind() string { return KindOf(t.source) }

// KindOf returns the kind of a stream or room: "conversation" of "conversation:7".
func KindOf(address string) string {
	kind, _, _ := strings.Cut(address, ":")
	return kind
}

// each returns the addresses that the template stands for, given a message: one address, or one for each value of a
// repeated field.
func (t template) each(m proto.Message, o Origin) []string {
	if t.source == "" {
		return nil
	}
	bare := len(t.placeholders) == 1 && t.text[0] == "" && t.text[1] == "" // only a placeholder, such as "{user_ids}"
	all := []string{t.text[0]}
	for i, h := range t.placeholders {
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

func (h placeholder) values(m proto.Message, o Origin) []string {
	switch h.kind {
	case placeholderActor:
		return []string{o.Actor}
	case placeholderNew:
		return []string{o.NewID()}
	case placeholderPair:
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

package catalog

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

func (c *Catalog) newEvent(owner string, d protoreflect.MessageDescriptor, o *routingv1.Event) (*Event, error) {
	kind, err := c.streamKindOf(owner, o.Kind)
	if err != nil {
		return nil, err
	}
	e := &Event{Name: o.Name, Owner: owner, Topic: kind.topic, Class: kind.class, Redacts: o.Redacts, kind: kind.name}
	parse := func(source string) template {
		t, problem := parseTemplate(d, source)
		if err == nil {
			err = problem
		}
		return t
	}
	e.stream, e.subject = parse(kind.address()), parse(o.Subject)
	for _, r := range slices.Concat(kind.rooms, o.Rooms) {
		e.rooms = append(e.rooms, parse(r))
	}
	for _, m := range o.Opens {
		e.opens = append(e.opens, membership{parse(m.Room), parse(m.User)})
	}
	for _, m := range o.Closes {
		e.closes = append(e.closes, membership{parse(m.Room), parse(m.User)})
	}
	if o.Expires != "" {
		e.expires = timeField(d, o.Expires)
		if e.expires == nil && err == nil {
			err = fmt.Errorf("expires: %s has no Timestamp field %q", d.FullName(), o.Expires)
		}
	}
	for _, x := range o.Timers {
		e.timers = append(e.timers, timer{parse(x.Key), timeField(d, x.Due), x.Command})
	}
	for _, key := range o.Cancels {
		e.cancels = append(e.cancels, parse(key))
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if proto.GetExtension(f.Options(), routingv1.E_Personal).(bool) {
			e.personal = append(e.personal, f)
		}
	}
	return e, err
}

// Kind returns the kind of the event's streams, such as "conversation".
func (e *Event) Kind() string { return e.kind }

// Stream returns the template of the event's stream, such as "conversation:{conversation_id}".
func (e *Event) Stream() string { return e.stream.source }

// Rooms returns the templates of the rooms to which the event is delivered. The rooms that its kind of stream declares
// come first.
func (e *Event) Rooms() []string {
	rooms := make([]string, len(e.rooms))
	for i, r := range e.rooms {
		rooms[i] = r.source
	}
	return rooms
}

// Membership is a room that an event opens or closes for users.
type Membership struct {
	Room  string
	Users []string
}

// Place contains the addresses of one event, the memberships that it begins and ends, and the time when it expires.
type Place struct {
	Stream  string
	Subject string
	Rooms   []string
	Opens   []Membership
	Closes  []Membership
	Expires time.Time // when the event expires; zero if it does not expire
}

// Place derives the Place of one event from its declaration and its fields.
func (e *Event) Place(m proto.Message, o Origin) Place {
	p := Place{Stream: e.stream.one(m, o), Subject: e.subject.one(m, o)}
	for _, r := range e.rooms {
		p.Rooms = append(p.Rooms, r.each(m, o)...)
	}
	for _, x := range e.opens {
		p.Opens = append(p.Opens, Membership{x.room.one(m, o), x.user.each(m, o)})
	}
	for _, x := range e.closes {
		p.Closes = append(p.Closes, Membership{x.room.one(m, o), x.user.each(m, o)})
	}
	if e.expires != nil {
		p.Expires = timeOf(m, e.expires)
	}
	return p
}

// Split separates the personal fields of an event from the other fields. It returns the event without its personal
// fields, and a message of the same type with only the personal fields. If the type has no personal fields, the second
// result is nil.
func (e *Event) Split(m proto.Message) (plain, personal proto.Message) {
	if len(e.personal) == 0 {
		return m, nil
	}
	plain = proto.Clone(m)
	personal = e.Type.New().Interface()
	for _, f := range e.personal {
		if m.ProtoReflect().Has(f) {
			personal.ProtoReflect().Set(f, m.ProtoReflect().Get(f))
			plain.ProtoReflect().Clear(f)
		}
	}
	return plain, personal
}

// Decode decodes the body of an event, given its name.
func (c *Catalog) Decode(name string, body []byte) (proto.Message, error) {
	e, ok := c.events[name]
	if !ok {
		return nil, fmt.Errorf("event %q is not declared", name)
	}
	m := e.Type.New().Interface()
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("event %s: %w", name, err)
	}
	return m, nil
}

// Stream returns the stream that a command changes, which is also its Kafka key.
func (c *Command) Stream(m proto.Message, o Origin) string { return c.stream.one(m, o) }

// Subject returns the part of the stream that a command is about, such as the id of a message, or "" if the command is
// about the stream as a whole.
func (c *Command) Subject(m proto.Message, o Origin) string { return c.subject.one(m, o) }

// MemberOf returns the room of which the actor must be a member, or "" if there is none.
func (c *Command) MemberOf(m proto.Message, o Origin) string { return c.memberOf.one(m, o) }

// Kind returns the kind of the stream that the command changes.
func (c *Command) Kind() string { return c.stream.kind() }

func (c *Catalog) check(e *Event) (problems []error) {
	fail := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: "+format, append([]any{e.Name}, args...)...))
	}
	for _, t := range []template{e.stream, e.subject} {
		for _, h := range t.placeholders {
			if h.field != nil && h.field.IsList() {
				fail("%q must be one address, so its placeholders must not name a repeated field", t.source)
			}
		}
	}
	if e.Redacts && e.subject.source == "" {
		fail("redacts, but has no subject")
	}
	// Events that open and close a room must be in the stream of the room, so that the versions of the stream define
	// their order among the other events of the room.
	for _, m := range slices.Concat(e.opens, e.closes) {
		if m.room.source != e.stream.source {
			fail("opens or closes %s from the stream %s", m.room.source, e.stream.source)
		}
	}
	for _, t := range e.timers {
		c.checkTimer(e, t, fail)
	}
	if len(e.timers) > 0 && e.Class == routingv1.Class_CLASS_EPHEMERAL {
		fail("sets a timer, but is not logged")
	}
	return problems
}

// checkCommands returns an error for each command with one of these faults: its stream or member_of names an optional
// field, no event of its service opens a room of the kind in member_of, or it has count_members_up_to without
// member_of.
func (c *Catalog) checkCommands() (problems []error) {
	for _, name := range c.CommandNames() {
		cmd := c.commands[name]
		for _, h := range slices.Concat(cmd.stream.placeholders, cmd.memberOf.placeholders) {
			if h.field != nil && h.field.HasPresence() {
				problems = append(problems, fmt.Errorf("%s: the optional field %s must not be part of an address", name, h.field.Name()))
			}
		}
		if cmd.memberOf.source == "" {
			if cmd.CountMembersUpTo > 0 {
				problems = append(problems, fmt.Errorf("%s: it counts members, but has no member_of", name))
			}
			continue
		}
		opened := false
		for _, e := range c.events {
			opened = opened || e.Owner == cmd.Owner && slices.ContainsFunc(e.opens, func(m membership) bool {
				return m.room.kind() == cmd.memberOf.kind()
			})
		}
		if !opened {
			problems = append(problems, fmt.Errorf("%s: no event of %s opens %s", name, cmd.Owner, cmd.memberOf.source))
		}
	}
	return problems
}

// checkTopics returns an error for each topic that has both events of a log and state. Records of events have positions
// of the log, records of state do not.
func (c *Catalog) checkTopics() (problems []error) {
	for _, t := range c.Topics("") {
		if c.carries(t.Name, true) && c.carries(t.Name, false) {
			problems = append(problems, fmt.Errorf("topic %s contains logged events and state; give each its own topic", t.Name))
		}
	}
	return problems
}

// checkRefusals returns an error for each code that is declared twice or incompletely.
func (c *Catalog) checkRefusals() (problems []error) {
	first := map[string]string{}
	for _, code := range refusal.Codes() {
		first[code.Name] = "all services"
	}
	for _, r := range c.refusals {
		if other, twice := first[r.Code]; twice {
			problems = append(problems, fmt.Errorf("%s: the code %s is declared by %s already", r.Owner, r.Code, other))
		}
		if r.Code == "" || r.Meaning == "" {
			problems = append(problems, fmt.Errorf("%s: the refusal %q needs a code and a meaning", r.Owner, r.Code))
		}
		first[r.Code] = r.Owner
	}
	return problems
}

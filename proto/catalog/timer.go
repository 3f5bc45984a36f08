package catalog

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// timer is a declared timer of an event.
type timer struct {
	key     template
	due     protoreflect.FieldDescriptor
	command string
}

// Timer is a command that is sent to a stream at a given time, unless another event of the stream sets the same key or
// cancels it before that time.
type Timer struct {
	Key     string
	Due     time.Time
	Command string
	Body    proto.Message // the body of the command
}

// Timers returns the timers that an event sets, and the keys of the timers that it cancels.
func (c *Catalog) Timers(e *Event, m proto.Message, o Origin) (set []Timer, cancelled []string) {
	for _, t := range e.timers {
		key, due := t.key.one(m, o), timeOf(m, t.due)
		if due.IsZero() {
			cancelled = append(cancelled, key)
			continue
		}
		body := c.commands[t.command].Type.New()
		fields := body.Descriptor().Fields()
		for i := range fields.Len() {
			if from := m.ProtoReflect().Descriptor().Fields().ByName(fields.Get(i).Name()); m.ProtoReflect().Has(from) {
				body.Set(fields.Get(i), m.ProtoReflect().Get(from))
			}
		}
		set = append(set, Timer{key, due, t.command, body.Interface()})
	}
	for _, key := range e.cancels {
		cancelled = append(cancelled, key.each(m, o)...)
	}
	return set, cancelled
}

// HasTimers reports whether any event of a service sets a timer.
func (c *Catalog) HasTimers(owner string) bool {
	for _, e := range c.events {
		if e.Owner == owner && len(e.timers) > 0 {
			return true
		}
	}
	return false
}

// SetsTimers reports whether an event may set or cancel timers.
func (e *Event) SetsTimers() bool { return len(e.timers)+len(e.cancels) > 0 }

// checkTimer checks a declared timer: its key, its time and the command that it sends. It calls the function fail for
// each mistake.
func (c *Catalog) checkTimer(e *Event, t timer, fail func(string, ...any)) {
	if t.key.source == "" {
		fail("a timer has no key")
	}
	for _, h := range t.key.placeholders {
		if h.field != nil && h.field.IsList() {
			fail("the key %q must be one key, so its placeholders must not name a repeated field", t.key.source)
		}
	}
	if t.due == nil {
		fail("the timer %q has no time: due must name a Timestamp field", t.key.source)
	}
	cmd, ok := c.commands[t.command]
	if !ok || cmd.Owner != e.Owner || cmd.Public {
		fail("the timer %q sends %q, which is not an internal command of %s", t.key.source, t.command, e.Owner)
		return
	}
	if cmd.stream.source != e.stream.source {
		fail("the timer %q sends %s to %s, but belongs to %s", t.key.source, t.command, cmd.stream.source, e.stream.source)
	}
	fields, of := cmd.Type.Descriptor().Fields(), e.Type.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		from := of.ByName(f.Name())
		switch {
		case from == nil || from.Kind() != f.Kind() || from.Cardinality() != f.Cardinality() || from.Message() != f.Message() ||
			from.Enum() != f.Enum():
			fail("the timer %q sends %s, but the event has no field %s of the same type", t.key.source, t.command, f.Name())
		case e.isPersonal(from):
			fail("the timer %q would store the personal field %s outside the event", t.key.source, f.Name())
		}
	}
}

func (e *Event) isPersonal(f protoreflect.FieldDescriptor) bool {
	for _, p := range e.personal {
		if p == f {
			return true
		}
	}
	return false
}

var timestampName = (&timestamppb.Timestamp{}).ProtoReflect().Descriptor().FullName()

// timeField returns the field with the given name. It returns nil if there is no such field, if the type of the field
// is not Timestamp, or if the field is repeated.
func timeField(d protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	f := d.Fields().ByName(protoreflect.Name(name))
	if f == nil || f.IsList() || f.Kind() != protoreflect.MessageKind || f.Message().FullName() != timestampName {
		return nil
	}
	return f
}

// timeOf returns the value of a time field, in whole microseconds, or zero if the field is not set.
func timeOf(m proto.Message, f protoreflect.FieldDescriptor) time.Time {
	if !m.ProtoReflect().Has(f) {
		return time.Time{}
	}
	at, ok := m.ProtoReflect().Get(f).Message().Interface().(*timestamppb.Timestamp)
	if !ok {
		return time.Time{}
	}
	// PostgreSQL stores times in whole microseconds.
	return at.AsTime().Truncate(time.Microsecond)
}

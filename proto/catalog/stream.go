package catalog

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// streamKind is a declared kind of stream, with the properties that its events share.
type streamKind struct {
	name, owner, topic string
	class              routingv1.Class
	id                 string // the template of the id
	rooms              []string
	dense              bool
	key                string // the template of the Kafka key; empty: the stream
}

// address returns the template of the streams of a kind, such as "conversation:{conversation_id}".
func (k *streamKind) address() string { return k.name + ":" + k.id }

func (c *Catalog) addStreamKind(owner string, o *routingv1.StreamKind) error {
	if other, twice := c.kinds[o.Kind]; twice {
		return fmt.Errorf("%s: the stream kind %s is declared by %s already", owner, o.Kind, other.owner)
	}
	c.kinds[o.Kind] = &streamKind{name: o.Kind, owner: owner, topic: o.Topic, class: o.Class, id: o.Id, rooms: o.Rooms,
		dense: o.Dense, key: o.Key}
	return nil
}

// KeyOf returns the Kafka key of a stream's events. It is the stream itself, unless the kind of stream declares another
// key. The key of a kind that is not declared is the stream too.
func (c *Catalog) KeyOf(stream string) string {
	name, id, _ := strings.Cut(stream, ":")
	kind := c.kinds[name]
	if kind == nil || kind.key == "" {
		return stream
	}
	placeholders, values := strings.Split(kind.id, ":"), strings.Split(id, ":")
	if len(placeholders) != len(values) {
		return stream
	}
	key := kind.key
	for i, placeholder := range placeholders {
		key = strings.ReplaceAll(key, placeholder, values[i])
	}
	return key
}

// checkKey returns an error if the Kafka key of a kind cannot be derived from its streams, or if an event of the kind
// is delivered to the members of a room, but does not have the key of the stream that opens and closes this room.
func (c *Catalog) checkKey(kind *streamKind) error {
	placeholders := strings.Split(kind.id, ":")
	for _, placeholder := range placeholders {
		if kind.key != "" && (!strings.HasPrefix(placeholder, "{") || !strings.HasSuffix(placeholder, "}")) {
			return fmt.Errorf("it has a key, so its id has to consist of fields with colons between them")
		}
	}
	for _, field := range fieldsIn.FindAllString(kind.key, -1) {
		if !slices.Contains(placeholders, field) {
			return fmt.Errorf("its key names %s, which its id does not contain", field)
		}
	}
	for _, e := range c.EventsOf(kind.name) {
		for _, room := range e.Rooms() {
			if c.opened(KindOf(room)) && room != kind.address() && room != kind.key {
				return fmt.Errorf("the event %s is delivered to %s, so its key has to be %q", e.Name, room, room)
			}
		}
	}
	return nil
}

// fieldsIn matches the placeholders of a template.
var fieldsIn = regexp.MustCompile(`\{[^}]*\}`)

// opened reports whether an event opens rooms of a kind for members.
func (c *Catalog) opened(kind string) bool {
	for _, e := range c.events {
		if slices.ContainsFunc(e.opens, func(m membership) bool { return m.room.kind() == kind }) {
			return true
		}
	}
	return false
}

// streamKindOf returns the kind of stream that an event of a service names. The kind must belong to the same service.
func (c *Catalog) streamKindOf(owner, name string) (*streamKind, error) {
	kind, ok := c.kinds[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("the stream kind %q is not declared; declare it with the option streams in a file of %s", name,
			owner)
	case kind.owner != owner:
		return nil, fmt.Errorf("the stream kind %s belongs to %s, and only its owner may append to it", name, kind.owner)
	}
	return kind, nil
}

// checkStreamKinds checks the kinds of streams against the topics and events.
func (c *Catalog) checkStreamKinds() (problems []error) {
	for _, name := range slices.Sorted(maps.Keys(c.kinds)) {
		kind := c.kinds[name]
		fail := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("stream kind %q of %s: "+format, append([]any{name, kind.owner}, args...)...))
		}
		if t, ok := c.topics[kind.topic]; !ok {
			fail("topic %q is not declared", kind.topic)
		} else if t.Owner != kind.owner {
			fail("topic %s belongs to %s, and only its owner may produce to it", kind.topic, t.Owner)
		}
		if name == "" || strings.ContainsAny(name, ":{}") {
			fail("the name must be one word; the rest of the address is the id")
		}
		if kind.class == routingv1.Class_CLASS_UNSPECIFIED {
			fail("it has no class")
		}
		if !strings.Contains(kind.id, "{") {
			fail("the id %q names no field", kind.id)
		}
		if len(kind.rooms) == 0 {
			fail("the events have no room; declare rooms")
		}
		if kind.dense && kind.class != routingv1.Class_CLASS_DURABLE {
			fail("it is dense, but not durable, so a slow client would miss versions")
		}
		if err := c.checkKey(kind); err != nil {
			fail("%w", err)
		}
		if len(c.EventsOf(name)) == 0 {
			fail("no event is of this kind; give an event the kind, or remove the declaration")
		}
	}
	return problems
}

// EventsOf returns the events of a kind of stream, such as "conversation", sorted by name.
func (c *Catalog) EventsOf(kind string) (all []*Event) {
	for _, name := range c.EventNames() {
		if e := c.events[name]; e.kind == kind {
			all = append(all, e)
		}
	}
	return all
}

// OwnerOf returns the service that owns the streams of a kind, such as "conversation".
func (c *Catalog) OwnerOf(kind string) (owner string, ok bool) {
	k, ok := c.kinds[kind]
	if !ok {
		return "", false
	}
	return k.owner, true
}

// DenseStreams returns the kinds of streams whose versions clients see without gaps, sorted.
func (c *Catalog) DenseStreams() (kinds []string) {
	for _, name := range slices.Sorted(maps.Keys(c.kinds)) {
		if c.kinds[name].dense {
			kinds = append(kinds, name)
		}
	}
	return kinds
}

// ClassOf returns the class of the events of a kind of stream, such as "conversation", or CLASS_UNSPECIFIED if the kind
// is not declared.
func (c *Catalog) ClassOf(kind string) routingv1.Class {
	k, ok := c.kinds[kind]
	if !ok {
		return routingv1.Class_CLASS_UNSPECIFIED
	}
	return k.class
}

package catalog

import (
	"fmt"
	"maps"
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
}

// address returns the template of the streams of a kind, such as "conversation:{conversation_id}".
func (k *streamKind) address() string { return k.name + ":" + k.id }

func (c *Catalog) addStreamKind(owner string, o *routingv1.StreamKind) error {
	if other, twice := c.kinds[o.Kind]; twice {
		return fmt.Errorf("%s: the stream kind %s is declared by %s already", owner, o.Kind, other.owner)
	}
	c.kinds[o.Kind] = &streamKind{name: o.Kind, owner: owner, topic: o.Topic, class: o.Class, id: o.Id, rooms: o.Rooms,
		dense: o.Dense}
	return nil
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

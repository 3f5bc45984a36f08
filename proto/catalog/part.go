package catalog

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// Part is a part of a stream that a command requires, such as one message of a conversation.
type Part struct {
	Name        string // a word for the part, such as "message"
	Stream      string // such as "conversation:7"
	Subject     string // such as the id of the message
	DeletedCode string // the code of the refusal if the part is deleted
}

// partDeclaration is the declaration of a Part, with templates of its addresses.
type partDeclaration struct {
	name, deletedCode string
	stream, subject   template
}

func newPartDeclaration(d protoreflect.MessageDescriptor, o *routingv1.Part) (*partDeclaration, error) {
	if o == nil {
		return nil, nil
	}
	stream, err := parseTemplate(d, o.Stream)
	if err != nil {
		return nil, err
	}
	subject, err := parseTemplate(d, o.Subject)
	return &partDeclaration{o.Name, o.DeletedCode, stream, subject}, err
}

// Requires returns the part of another stream that must exist when the command is committed. If the command requires no
// part, the result is zero.
func (c *Command) Requires(m proto.Message, o Origin) Part {
	if c.requires == nil {
		return Part{}
	}
	return Part{Name: c.requires.name, Stream: c.requires.stream.one(m, o), Subject: c.requires.subject.one(m, o),
		DeletedCode: c.requires.deletedCode}
}

// addresses returns the templates of all addresses and subjects of a command. The fields that they name must be ids.
func (c *Command) addresses() []template {
	all := []template{c.stream, c.subject, c.memberOf}
	if c.requires != nil {
		all = append(all, c.requires.stream, c.requires.subject)
	}
	return all
}

// checkParts returns an error for each command that requires a part of a stream that no event can create or delete, or
// whose declaration lacks a property.
func (c *Catalog) checkParts() (problems []error) {
	for _, name := range c.CommandNames() {
		cmd := c.commands[name]
		r := cmd.requires
		if r == nil {
			continue
		}
		fail := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("%s: requires: "+format, append([]any{name}, args...)...))
		}
		events := c.EventsOf(r.stream.kind())
		events = slices.DeleteFunc(events, func(e *Event) bool { return e.subject.source != r.subject.source })
		redacts := func(e *Event) bool { return e.Redacts }
		switch kind := c.kinds[r.stream.kind()]; {
		case r.name == "":
			fail("the part has no name")
		case kind == nil || kind.owner != cmd.Owner:
			fail("%s is not a stream of %s", r.stream.source, cmd.Owner)
		case r.stream.kind() == cmd.Kind():
			fail("%s is the command's own stream, whose state belongs to the aggregate", r.stream.source)
		case len(r.subject.placeholders) == 0 || !slices.ContainsFunc(events, redacts):
			fail("no event of %s has the subject %q and redacts it", r.stream.source, r.subject.source)
		case !slices.ContainsFunc(c.refusals, func(x Refusal) bool { return x.Code == r.deletedCode && x.Owner == cmd.Owner }):
			fail("%s does not declare the code %q", cmd.Owner, r.deletedCode)
		}
	}
	return problems
}

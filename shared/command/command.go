// Package command reads the commands that gateways publish for a service, and publishes their outcomes.
package command

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Command is a command with its declaration.
type Command struct {
	envelope.Command
	Declared *catalog.Command
	Message  proto.Message
}

// Topics are the topic of a service's commands and the topic of their outcomes.
type Topics struct {
	Service   string
	Catalog   *catalog.Catalog
	Publisher message.Publisher
}

// Read decodes a command. Gateways refuse a command that does not match its declaration, but other programs and
// gateways of another release may send such a command. So the error may be a refusal (see refusal.Of); then the result
// contains the embedded envelope.Command. After any other error, decoding the same bytes again would fail too.
func (t Topics) Read(m *message.Message) (Command, error) {
	sent, err := envelope.ReadCommand(m)
	if err != nil {
		return Command{}, err
	}
	c := Command{Command: sent}
	for _, own := range [...]struct{ name, text string }{{"command_id", c.ID}, {"actor", c.Actor},
		{"stream", c.Stream}, {"correlation", c.Correlation}, {"traceparent", c.TraceParent}} {
		if err := catalog.CheckStorable(own.name, own.text); err != nil {
			return c, err
		}
	}
	var known bool
	if c.Declared, known = t.Catalog.Command(c.Type); !known || c.Declared.Owner != t.Service {
		return c, fmt.Errorf("command %q is not one of %s", c.Type, t.Service)
	}
	c.Message = c.Declared.Type.New().Interface()
	if err := proto.Unmarshal(c.Body, c.Message); err != nil {
		return c, fmt.Errorf("command %s: %w", c.Type, err)
	}
	if err := c.Declared.Check(c.Message); err != nil {
		return c, err
	}
	if stream := c.Declared.Stream(c.Message, catalog.Origin{Actor: c.Actor, CommandID: c.ID}); stream != c.Stream {
		return c, fmt.Errorf("command %s is addressed to %q, but its fields name the stream %q", c.Type, c.Stream, stream)
	}
	return c, nil
}

// Outcome returns an outcome of a command.
func (t Topics) Outcome(c envelope.Command, kind envelope.Kind) envelope.Outcome {
	return envelope.Outcome{Actor: c.Actor, CommandID: c.ID, Type: c.Type, Source: t.Service, Stream: c.Stream, Kind: kind,
		TraceParent: c.TraceParent}
}

// Refused returns the outcome of a command that is refused.
func (t Topics) Refused(c envelope.Command, r *refusal.Error) envelope.Outcome {
	outcome := t.Outcome(c, envelope.Refused)
	outcome.Code, outcome.Text, outcome.Field = r.Code, r.Text, r.Field
	return outcome
}

// Publish publishes an outcome on the topic of outcomes. An outcome that the headers of an event contain (see
// envelope.Event.Answers) is published with the event and does not need Publish.
func (t Topics) Publish(ctx context.Context, outcome envelope.Outcome) error {
	m := outcome.Message()
	m.SetContext(ctx)
	if err := t.Publisher.Publish(catalog.ResultTopic(t.Service), m); err != nil {
		return fmt.Errorf("publish the outcome of %s: %w", outcome.CommandID, err)
	}
	return nil
}

// Failure is the text of the outcome of a command that becomes a dead letter. The outcome's code is refusal.Failed.
const Failure = "the command could not be processed; it is kept as a dead letter for the operator"

// Expired is the refusal of a command that could not be decided before the time in its field Expires.
var Expired = refusal.New(refusal.Expired, "the command arrived after it had expired")

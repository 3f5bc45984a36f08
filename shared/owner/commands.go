package owner

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// commands takes the messages of the command topic: each is queued for its stream in the order of its lane, decided
// there, and acknowledged when its outcome is in the log and on its way to whoever waits for it.
type commands struct {
	service   string
	catalog   *catalog.Catalog
	decider   *decider
	publisher message.Publisher
}

func (c *commands) handle(m *message.Message) error {
	a, err := c.read(m)
	if refused, is := refusal.Of(err); is {
		// It is not kept: the same command is refused alike each time, and a text in it may be the one that cannot be stored.
		return c.publish(m.Context(), envelope.Result{Actor: a.command.Actor, CommandID: a.command.ID, Type: a.command.Type,
			Source: c.service, Stream: a.command.Stream, Kind: envelope.Refused, Code: refused.Code, Text: refused.Text,
			TraceParent: a.command.TraceParent})
	}
	if err != nil {
		return bus.Permanent(err) // the same bytes will not get better
	}
	c.decider.ask(a)
	bus.Release(m) // its place among the commands of its stream is settled
	return c.tell(m.Context(), <-a.answer)
}

// tell has the outcome on its way when it returns nothing; only then is the command acknowledged.
func (c *commands) tell(ctx context.Context, got answer) error {
	if got.err != nil {
		return got.err
	}
	if got.told {
		return nil
	}
	return c.publish(ctx, got.result)
}

// read reads a command. Gateways refuse a command that is not as it is declared, but other programs may send some too, and
// gateways of another release; so its error may be a refusal, and the command is returned beside that.
func (c *commands) read(m *message.Message) (*asked, error) {
	command, err := envelope.ReadCommand(m)
	if err != nil {
		return nil, err
	}
	for _, own := range [...]struct{ name, text string }{{"command_id", command.ID}, {"actor", command.Actor},
		{"stream", command.Stream}, {"correlation", command.Correlation}, {"traceparent", command.TraceParent}} {
		if err := catalog.CheckStorable(own.name, own.text); err != nil {
			return &asked{command: command}, err
		}
	}
	declared, ok := c.catalog.Command(command.Type)
	if !ok || declared.Owner != c.service {
		return nil, fmt.Errorf("command %q is none of %s's", command.Type, c.service)
	}
	body := declared.Type.New().Interface()
	if err := proto.Unmarshal(command.Body, body); err != nil {
		return nil, fmt.Errorf("command %s: %w", command.Type, err)
	}
	if err := declared.Check(body); err != nil {
		return &asked{command: command}, err
	}
	canonical, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("command %s: %w", command.Type, err)
	}
	a := &asked{command: command, declared: declared, message: body, digest: digest(command, canonical),
		trace: m.Context(), answer: make(chan answer, 1)}
	if stream := declared.Stream(body, a.origin()); stream != command.Stream {
		return nil, fmt.Errorf("command %s is addressed to %q, but asks to change %q", command.Type, command.Stream, stream)
	}
	return a, nil
}

// digest stands for what a command asks for, to tell its repetition from another command with the same id.
func digest(c envelope.Command, body []byte) string {
	h := sha256.New()
	for _, part := range []string{c.Type, c.Stream} {
		_, _ = io.WriteString(h, part+"\x00") // never fails
	}
	_, _ = h.Write(body)
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil)[:16])
}

// publish tells an outcome that no event tells, before the command is acknowledged.
func (c *commands) publish(ctx context.Context, r envelope.Result) error {
	m := r.Message()
	m.SetContext(ctx)
	if err := c.publisher.Publish(catalog.ResultTopic(c.service), m); err != nil {
		return fmt.Errorf("tell the outcome of %s: %w", r.CommandID, err)
	}
	return nil
}

// dead gives a command that goes to the dead letters its final outcome. One that does not even say whose it is has none.
func (c *commands) dead(ctx context.Context, m *message.Message, _ error) error {
	command, err := envelope.ReadCommand(m)
	if err != nil {
		return nil //nolint:nilerr // nobody can be told
	}
	result, err := c.decider.failed(ctx, command, nil)
	var own *eventlog.MemberError
	if errors.As(err, &own) {
		return nil // what it says of itself cannot be stored either
	} else if err != nil {
		return err
	}
	return c.publish(ctx, result)
}

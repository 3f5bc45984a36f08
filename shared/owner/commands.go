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
	"github.com/edumatrix/interlinked/shared/retry"
)

// commands handles the messages of the command topic. Each command is queued for its stream in the order of its lane,
// decided, and acknowledged once its outcome is in the log and published.
type commands struct {
	service   string
	catalog   *catalog.Catalog
	decider   *decider
	publisher message.Publisher
}

func (c *commands) handle(m *message.Message) error {
	pc, err := c.read(m)
	if refused, is := refusal.Of(err); is {
		// The refusal is not stored: the same command is refused alike each time, and one of its texts may be what
		// cannot be stored.
		return c.publish(m.Context(), envelope.Result{Actor: pc.command.Actor, CommandID: pc.command.ID, Type: pc.command.Type,
			Source: c.service, Stream: pc.command.Stream, Kind: envelope.Refused, Code: refused.Code, Text: refused.Text,
			TraceParent: pc.command.TraceParent})
	}
	if err != nil {
		return retry.Permanent(err) // decoding the same bytes again would fail as well
	}
	c.decider.enqueue(pc)
	bus.Release(m) // its order among the commands of its stream is settled
	return c.publishOutcome(m.Context(), <-pc.outcome)
}

// publishOutcome returns nil once the outcome is published or certain to be; only then is the command acknowledged.
func (c *commands) publishOutcome(ctx context.Context, outcome commandOutcome) error {
	if outcome.err != nil {
		return outcome.err
	}
	if outcome.published {
		return nil
	}
	return c.publish(ctx, outcome.result)
}

// read decodes a command. Gateways refuse a command that does not match its declaration, but other programs and
// gateways of another release may send one. So the error may be a refusal; the command is returned as well.
func (c *commands) read(m *message.Message) (*pendingCommand, error) {
	command, err := envelope.ReadCommand(m)
	if err != nil {
		return nil, err
	}
	for _, own := range [...]struct{ name, text string }{{"command_id", command.ID}, {"actor", command.Actor},
		{"stream", command.Stream}, {"correlation", command.Correlation}, {"traceparent", command.TraceParent}} {
		if err := catalog.CheckStorable(own.name, own.text); err != nil {
			return &pendingCommand{command: command}, err
		}
	}
	declared, ok := c.catalog.Command(command.Type)
	if !ok || declared.Owner != c.service {
		return nil, fmt.Errorf("command %q is not one of %s", command.Type, c.service)
	}
	body := declared.Type.New().Interface()
	if err := proto.Unmarshal(command.Body, body); err != nil {
		return nil, fmt.Errorf("command %s: %w", command.Type, err)
	}
	if err := declared.Check(body); err != nil {
		return &pendingCommand{command: command}, err
	}
	canonical, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("command %s: %w", command.Type, err)
	}
	pc := &pendingCommand{command: command, declared: declared, message: body, digest: digest(command, canonical),
		trace: m.Context(), outcome: make(chan commandOutcome, 1)}
	if stream := declared.Stream(body, pc.origin()); stream != command.Stream {
		return nil, fmt.Errorf("command %s is addressed to %q, but asks to change %q", command.Type, command.Stream, stream)
	}
	return pc, nil
}

// digest returns a digest of a command's contents, by which a repeat is distinguished from another command with the
// same id.
func digest(c envelope.Command, body []byte) string {
	h := sha256.New()
	for _, part := range []string{c.Type, c.Stream} {
		_, _ = io.WriteString(h, part+"\x00") // never fails
	}
	_, _ = h.Write(body)
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil)[:16])
}

// publish publishes an outcome that no event carries.
func (c *commands) publish(ctx context.Context, r envelope.Result) error {
	m := r.Message()
	m.SetContext(ctx)
	if err := c.publisher.Publish(catalog.ResultTopic(c.service), m); err != nil {
		return fmt.Errorf("publish the outcome of %s: %w", r.CommandID, err)
	}
	return nil
}

// recordDeadLetter gives a command that goes to the dead letters its final outcome. A command without a readable actor
// and id has none.
func (c *commands) recordDeadLetter(ctx context.Context, m *message.Message, _ error) error {
	command, err := envelope.ReadCommand(m)
	if err != nil {
		return nil //nolint:nilerr // there is nobody to notify
	}
	result, err := c.decider.recordFailure(ctx, command, nil)
	var own *eventlog.WriteError
	if errors.As(err, &own) {
		return nil // its own texts cannot be stored either
	} else if err != nil {
		return err
	}
	return c.publish(ctx, result)
}

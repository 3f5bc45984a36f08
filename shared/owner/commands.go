package owner

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/retry"
)

// commands handles the messages of the command topic. It queues each valid command for its stream, in the order of the
// lane. It acknowledges a command once the outcome is in an event of the log, which the relay publishes, or is
// published on the topic of outcomes.
type commands struct {
	command.Topics
	decider *decider
}

func (c *commands) handle(m *message.Message) error {
	read, err := c.Read(m)
	if refused, is := refusal.Of(err); is {
		// The refusal is not stored: the same command is refused in the same way each time, and the command's texts may
		// contain characters that Postgres cannot store.
		return c.Publish(m.Context(), c.Refused(read.Command, refused))
	}
	if err != nil {
		return retry.Permanent(err) // decoding the same bytes again would fail as well
	}
	pc := &pendingCommand{command: read.Command, declared: read.Declared, message: read.Message,
		digest: digestOfMessage(read.Command, read.Message), trace: m.Context(), outcome: make(chan commandOutcome, 1)}
	c.decider.enqueue(pc)
	bus.Release(m) // from here on, the mailbox keeps the order of the stream's commands
	return c.publishOutcome(m.Context(), <-pc.outcome)
}

// publishOutcome publishes an outcome, unless the relay publishes it with the command's last event. The command is
// acknowledged only if publishOutcome returns nil.
func (c *commands) publishOutcome(ctx context.Context, outcome commandOutcome) error {
	if outcome.err != nil {
		return outcome.err
	}
	if outcome.published {
		return nil
	}
	return c.Publish(ctx, outcome.Outcome)
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

// recordDeadLetter stores and publishes the final outcome of a command that becomes a dead letter.
func (c *commands) recordDeadLetter(ctx context.Context, m *message.Message, _ error) error {
	sent, err := envelope.ReadCommand(m)
	if err != nil {
		return nil //nolint:nilerr // a record that lacks the actor, the id or another header gets no outcome
	}
	outcome, err := c.decider.recordFailure(ctx, sent, nil)
	var own *eventlog.WriteError
	if errors.As(err, &own) {
		return nil // Postgres cannot store a text of the command, such as its type, so the command gets no outcome
	} else if err != nil {
		return err
	}
	return c.Publish(ctx, outcome)
}

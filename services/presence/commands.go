package presence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// commands carries out commands on state. Outcomes are not stored: a repeated command changes nothing and has the same
// outcome.
type commands struct {
	store     *store.Store
	catalog   *catalog.Catalog
	publisher message.Publisher
}

// handle carries out one command. The command is acknowledged when its outcome was published.
func (c *commands) handle(m *message.Message) error {
	command, err := envelope.ReadCommand(m)
	if err != nil {
		return retry.Permanent(err)
	}
	outcome := outcomeOf(command)
	if !command.Expires.IsZero() && time.Now().After(command.Expires) {
		outcome.Kind, outcome.Code, outcome.Text = envelope.Refused, refusal.Expired, "it came later than it was worth doing"
		return c.tell(m.Context(), outcome)
	}
	number, err := c.do(m.Context(), command)
	refused, isRefusal := refusal.Of(err)
	switch {
	case isRefusal:
		outcome.Kind, outcome.Code, outcome.Text = envelope.Refused, refused.Code, refused.Text
	case err != nil:
		return err
	default:
		outcome.Kind, outcome.Version = envelope.Committed, number
	}
	return c.tell(m.Context(), outcome)
}

// do carries out a command, and returns the number of the change.
func (c *commands) do(ctx context.Context, command envelope.Command) (number int64, err error) {
	declared, ok := c.catalog.Command(command.Type)
	if !ok || declared.Owner != "presence" {
		return 0, retry.Permanent(fmt.Errorf("command %q is not a command of presence", command.Type))
	}
	body := declared.Type.New().Interface()
	if err := proto.Unmarshal(command.Body, body); err != nil {
		return 0, retry.Permanent(fmt.Errorf("command %s: %w", command.Type, err))
	}
	if err := declared.Check(body); err != nil {
		return 0, err // a gateway of another release may not have refused it
	}
	switch wish := body.(type) {
	case *presencev1.EndSession:
		number, err = c.store.EndSession(ctx, command.Actor, wish.GetSessionId())
		if err == nil && number == 0 {
			err = refusal.New(refusal.NotFound, "you have no session %s", wish.GetSessionId())
		}
		return number, away(err)
	}
	return 0, retry.Permanent(fmt.Errorf("command %q is not handled here", command.Type))
}

// away marks an error as one of an unavailable Redis, unless it is an answer of Redis.
func away(err error) error {
	var answered redis.Error
	if _, isRefusal := refusal.Of(err); err == nil || isRefusal || errors.As(err, &answered) {
		return err
	}
	return retry.Unavailable("redis", err)
}

func (c *commands) tell(ctx context.Context, outcome envelope.Result) error {
	m := outcome.Message()
	m.SetContext(ctx)
	if err := c.publisher.Publish(catalog.ResultTopic(outcome.Source), m); err != nil {
		return fmt.Errorf("publish the outcome of %s: %w", outcome.CommandID, err)
	}
	return nil
}

// dead publishes the final outcome of a command that becomes a dead letter, unless its user is not known.
func (c *commands) dead(ctx context.Context, m *message.Message, _ error) error {
	command, err := envelope.ReadCommand(m)
	if err != nil {
		return nil //nolint:nilerr // the outcome has no recipient
	}
	outcome := outcomeOf(command)
	outcome.Kind, outcome.Code = envelope.Failed, refusal.Failed
	outcome.Text = "it could not be done; whoever runs the service finds it among the dead letters"
	return c.tell(ctx, outcome)
}

func outcomeOf(c envelope.Command) envelope.Result {
	return envelope.Result{Actor: c.Actor, CommandID: c.ID, Type: c.Type, Source: "presence", Stream: c.Stream,
		TraceParent: c.TraceParent}
}

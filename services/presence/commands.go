package presence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/edumatrix/interlinked/proto/catalog"
	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// commands handles the commands of presence. Their outcomes are not stored, because a repeated command changes nothing
// and gets the same outcome.
type commands struct {
	command.Topics
	store *store.Store
}

// handle executes one command and publishes its outcome. It returns an error for a command that must be retried or
// becomes a dead letter.
func (c *commands) handle(m *message.Message) error {
	read, err := c.Read(m)
	if _, isRefusal := refusal.Of(err); err != nil && !isRefusal {
		return retry.Permanent(err)
	}
	outcome := c.Outcome(read.Command, envelope.Committed)
	switch {
	case err != nil:
	case !read.Expires.IsZero() && time.Now().After(read.Expires):
		err = command.Expired
	default:
		outcome.Version, err = c.do(m.Context(), read)
	}
	if refused, isRefusal := refusal.Of(err); isRefusal {
		outcome = c.Refused(read.Command, refused)
	} else if err != nil {
		return err
	}
	return c.Publish(m.Context(), outcome)
}

// do executes a command, and returns the number of the change. This number is the version of the stream of the user's
// sessions.
func (c *commands) do(ctx context.Context, read command.Command) (catalog.Version, error) {
	switch request := read.Message.(type) {
	case *presencev1.EndSession:
		number, err := c.store.EndSession(ctx, read.Actor, request.GetSessionId())
		if err == nil && number == 0 {
			err = refusal.New(refusal.NotFound, "you have no session %s", request.GetSessionId())
		}
		return catalog.Version(number), unavailable(err)
	}
	return 0, retry.Permanent(fmt.Errorf("presence does not handle the command %q", read.Type))
}

// unavailable marks an error as retry.ErrUnavailable. It does not mark a refusal, or an error in an answer of Redis,
// because Redis is available if it answers.
func unavailable(err error) error {
	var answered redis.Error
	if _, isRefusal := refusal.Of(err); err == nil || isRefusal || errors.As(err, &answered) {
		return err
	}
	return retry.Unavailable("redis", err)
}

// deadLetter publishes the final outcome of a command that becomes a dead letter, unless its sender is unknown.
func (c *commands) deadLetter(ctx context.Context, m *message.Message, _ error) error {
	sent, err := envelope.ReadCommand(m)
	if err != nil {
		return nil //nolint:nilerr // the outcome has no recipient
	}
	outcome := c.Outcome(sent, envelope.Failed)
	outcome.Code, outcome.Text = refusal.Failed, command.Failure
	return c.Publish(ctx, outcome)
}

package owner

import (
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// failing is a publisher that returns an error while its field away is true.
type failing struct {
	away      bool
	published []*message.Message
}

func (f *failing) Publish(_ string, messages ...*message.Message) error {
	if f.away {
		return errors.New("away")
	}
	f.published = append(f.published, messages...)
	return nil
}

func (f *failing) Close() error { return nil }

// The outcome of a command cannot be published. The command must not be acknowledged: if the process crashed now,
// nobody would publish the outcome.
func TestPublish_AcknowledgesACommandOnlyWithItsOutcome(t *testing.T) {
	t.Parallel()
	p := &failing{away: true}
	c := &commands{Topics: command.Topics{Service: "chat", Publisher: p}}
	refused := commandOutcome{Outcome: envelope.Outcome{Actor: "alice", CommandID: "1", Type: "chat.leave", Source: "chat",
		Stream: "conversation:7", Kind: envelope.Refused, Code: "not_a_member"}}
	if err := c.publishOutcome(t.Context(), refused); err == nil {
		t.Fatal("the command was acknowledged without its outcome")
	}
	p.away = false
	if err := c.publishOutcome(t.Context(), refused); err != nil || len(p.published) != 1 {
		t.Fatalf("%v, %d published", err, len(p.published))
	}
	told := commandOutcome{Outcome: envelope.Outcome{Kind: envelope.Committed}, published: true}
	if err := c.publishOutcome(t.Context(), told); err != nil || len(p.published) != 1 {
		t.Fatalf("an outcome that the relay publishes was published again: %v, %d published", err, len(p.published))
	}
	if err := c.publishOutcome(t.Context(), commandOutcome{err: errors.New("not decided")}); err == nil {
		t.Fatal("the command was acknowledged without being decided")
	}
}

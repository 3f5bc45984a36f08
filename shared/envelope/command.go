package envelope

import (
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Command is a command as it is sent to the service that decides it. The pair of Actor and ID identifies the command,
// however often it is sent.
type Command struct {
	ID          string
	Type        string
	Stream      string // the stream that the command changes; also the Kafka key
	Actor       string
	Time        time.Time
	Expires     time.Time // zero: never
	Correlation string
	TraceParent string
	Body        []byte
}

// Message returns the command as a Watermill message.
func (c Command) Message() *message.Message {
	m := message.NewMessage(c.ID, c.Body)
	m.Metadata = message.Metadata{
		headerSpec: "1.0", headerID: c.ID, headerType: c.Type, headerSource: "/gateway", headerSubject: c.Stream,
		headerTime: c.Time.UTC().Format(time.RFC3339Nano), headerContent: contentType, headerActor: c.Actor,
		MetadataKey: c.Stream,
	}
	if !c.Expires.IsZero() {
		m.Metadata.Set(headerExpires, c.Expires.UTC().Format(time.RFC3339Nano))
	}
	if c.Correlation != "" {
		m.Metadata.Set(headerCorrelation, c.Correlation)
	}
	if c.TraceParent != "" {
		m.Metadata.Set(HeaderTraceParent, c.TraceParent)
	}
	return m
}

// ReadCommand reads a command from a record. It does not decode the body.
func ReadCommand(m *message.Message) (Command, error) {
	r := reader{m: m.Metadata}
	c := Command{
		ID: r.text(headerID), Type: r.text(headerType), Stream: r.text(headerSubject), Actor: r.text(headerActor),
		Time: r.time(headerTime), Correlation: m.Metadata.Get(headerCorrelation),
		TraceParent: m.Metadata.Get(HeaderTraceParent), Body: m.Payload,
	}
	if m.Metadata.Get(headerExpires) != "" {
		c.Expires = r.time(headerExpires)
	}
	if r.err != nil {
		return Command{}, fmt.Errorf("command record: %w", r.err)
	}
	return c, nil
}

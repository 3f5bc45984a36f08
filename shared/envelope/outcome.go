package envelope

import (
	"fmt"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Kind is the kind of a command's outcome. Clients get this text.
type Kind string

// The kinds of outcomes. Each is final: a command that is sent again gets the same outcome, for as long as its owner
// stores the outcome (eventlog.OutcomesKept).
const (
	Committed Kind = "committed"
	Unchanged Kind = "unchanged" // nothing had to change
	Refused   Kind = "refused"   // with a stable code
	Failed    Kind = "failed"    // not decided; kept as a dead letter
)

// Outcome is the outcome of a command as it is sent to the command's sender on the topic <service>-results.
type Outcome struct {
	Actor     string // also the Kafka key
	CommandID string
	Type      string
	Source    string // the service that decided
	Stream    string
	Kind      Kind
	// Version is the version of the stream after the command. Position is the position of the command's last event, or the
	// log's head if the command has no events; a query that names Position sees the command's effect. Version and Position
	// may be 0 in an outcome without events.
	Version  catalog.Version
	Position catalog.Position
	Code     string
	Text     string // explanation for people
	Field    string // path of the field to which a refusal refers; empty: none

	TraceParent string
}

const (
	headerKind = "ce_outcome"
	headerCode = "ce_code"
	headerText = "ce_message"
	// headerField is absent if the outcome has no field, or if a release that did not have this header wrote the record.
	headerField = "ce_field"

	typeOutcome = "mesh.outcome"
)

// Message returns the outcome as a Watermill message.
func (r Outcome) Message() *message.Message {
	m := message.NewMessage(r.Actor+"/"+r.CommandID, nil)
	m.Metadata = message.Metadata{
		headerSpec: "1.0", headerID: r.Actor + "/" + r.CommandID, headerType: typeOutcome, headerSource: "/" + r.Source,
		headerSubject: r.Stream, headerActor: r.Actor, headerCause: r.CommandID, headerAbout: r.Type,
		headerKind: string(r.Kind), headerVersion: strconv.FormatInt(int64(r.Version), 10),
		headerPosition: strconv.FormatInt(int64(r.Position), 10), MetadataKey: r.Actor,
	}
	if r.Code != "" {
		m.Metadata.Set(headerCode, r.Code)
	}
	if r.Text != "" {
		m.Metadata.Set(headerText, r.Text)
	}
	if r.Field != "" {
		m.Metadata.Set(headerField, r.Field)
	}
	if r.TraceParent != "" {
		m.Metadata.Set(HeaderTraceParent, r.TraceParent)
	}
	return m
}

// ReadOutcome reads an outcome from a record of a topic <service>-results.
func ReadOutcome(m *message.Message) (Outcome, error) {
	r := reader{m: m.Metadata}
	o := Outcome{
		Actor: r.text(headerActor), CommandID: r.text(headerCause), Type: r.text(headerAbout),
		Kind: Kind(r.text(headerKind)), Version: catalog.Version(r.number(headerVersion)), Position: catalog.Position(r.number(headerPosition)),
		Stream: m.Metadata.Get(headerSubject), Code: m.Metadata.Get(headerCode), Text: m.Metadata.Get(headerText),
		Field:       m.Metadata.Get(headerField),
		TraceParent: m.Metadata.Get(HeaderTraceParent),
	}
	if source := r.text(headerSource); source != "" {
		o.Source = source[1:]
	}
	if r.err != nil {
		return Outcome{}, fmt.Errorf("outcome record: %w", r.err)
	}
	return o, nil
}

// Outcome returns the outcome in the headers of an event with Answers set.
func (e Event) Outcome() Outcome {
	return Outcome{Actor: e.Actor, CommandID: e.Cause, Type: e.CommandType, Source: e.Source, Stream: e.Stream,
		Kind: Committed, Version: e.Version, Position: e.Position, TraceParent: e.TraceParent}
}

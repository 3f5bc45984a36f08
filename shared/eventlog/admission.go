package eventlog

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
)

type commandKey struct{ actor, id string }

// admission decides which writes of a transaction are admitted. It holds the part of the log that these writes are
// checked against: first as it was read under the log's lock, then with the changes of each admitted write.
type admission struct {
	owner    string
	at       time.Time // time of the next events: the log's clock, or a later DecidedAt of an admitted write
	position catalog.Position
	versions map[string]catalog.Version // newest version by stream; absent: the stream has no events

	incarnation incarnation
	outcomes    map[commandKey]outcome
	inbox       *inbox.Admission
	rows        rows

	members map[membershipKey]bool // true: the membership is open; false or absent: it is not open
	timers  map[timerKey]*timerRow // timers that are set; nil or absent: there is no timer
	parts   map[partKey]partState  // required parts of streams, and those of the admitted events

	maxRooms map[string]int   // by kind: the maximum number of rooms of a user
	rooms    map[roomsKey]int // number of rooms that a user is in, for the kinds in maxRooms
}

// admit adds the rows of a write. If the write is not admitted, admit adds no rows and returns the reason.
func (a *admission) admit(p *prepared) (Committed, error) {
	if repeated := a.repeated(p); repeated != nil {
		return Committed{}, repeated
	}
	if err := a.inbox.Check(p.inbox); err != nil {
		return Committed{}, err
	}
	if err := a.conflict(p.stream, p.expected); err != nil {
		return Committed{}, err
	}
	if err := a.try(p); err != nil {
		return Committed{}, err
	}
	return a.add(p), nil
}

func (a *admission) conflict(stream string, expected catalog.Version) error {
	if actual := a.versions[stream]; expected != AnyVersion && actual != expected {
		return &ConflictError{Stream: stream, Expected: expected, Actual: actual}
	}
	return nil
}

func (a *admission) repeated(p *prepared) error {
	var found map[int]envelope.Outcome
	index := 0
	for _, e := range p.entries {
		if !e.command {
			continue
		}
		if first, ok := a.outcomes[commandKey{e.actor, e.cause}]; ok && e.cause != "" {
			if found == nil {
				found = map[int]envelope.Outcome{}
			}
			found[index] = repeatedOutcome(first, e)
		}
		index++
	}
	if found == nil {
		return nil
	}
	return &RepeatedError{found}
}

// outcome is the outcome of a command, with the digest of the command; the digest is empty if it is not known.
type outcome struct {
	envelope.Outcome
	digest string
}

// repeatedOutcome returns the outcome of a command whose id has an outcome already: the first outcome if the command is
// the same, or a refusal if the id belongs to another command.
func repeatedOutcome(first outcome, e *entry) envelope.Outcome {
	same := first.digest == e.digest || first.digest == "" || e.digest == ""
	if same && first.Type == e.commandType && first.Stream == e.stream {
		first.TraceParent = e.traceParent
		return first.Outcome
	}
	return envelope.Outcome{Actor: e.actor, CommandID: e.cause, Type: e.commandType, Source: first.Source,
		Stream: e.stream, Kind: envelope.Refused, Code: refusal.IDReused,
		Text: fmt.Sprintf("the id already belongs to another command (%s)", first.Type), TraceParent: e.traceParent}
}

func (a *admission) add(p *prepared) Committed {
	var c Committed
	if p.at.After(a.at) {
		a.at = p.at
	}
	for _, e := range p.entries {
		if e.fired != nil {
			a.timer(timerKey{e.fired.Stream, e.fired.Key}, nil)
		}
		for i, d := range e.drafts {
			a.position++
			a.versions[e.stream]++
			a.rows.event(a, e, d, e.command && i == len(e.drafts)-1)
			a.note(e.stream, d)
		}
		if !e.command {
			continue
		}
		r := envelope.Outcome{Actor: e.actor, CommandID: e.cause, Type: e.commandType, Source: a.owner, Stream: e.stream,
			Kind: e.kind, Version: a.versions[e.stream], Position: a.position, Code: e.code, Text: e.text,
			Field: e.field, TraceParent: e.traceParent}
		c.Outcomes = append(c.Outcomes, r)
		if e.cause != "" {
			a.outcomes[commandKey{e.actor, e.cause}] = outcome{r, e.digest}
			a.rows.outcomes = append(a.rows.outcomes, outcome{r, e.digest})
		}
	}
	a.inbox.Add(p.inbox)
	c.Version, c.Position, c.At = a.versions[p.stream], a.position, a.at
	return c
}

// eventNames is the UUID namespace of event ids.
var eventNames = uuid.MustParse("0b1c6b60-3f0c-5f0e-8a41-2f6f0d3a9b17")

// eventID derives the id of an event from its owner, stream and version, so that every computation has the same result.
// In a new incarnation, the versions of lost events are used again. So from the second incarnation on, the id also
// depends on the incarnation.
func eventID(owner string, i incarnation, stream string, version catalog.Version) uuid.UUID {
	name := fmt.Appendf(nil, "%s/%s/%d", owner, stream, version)
	if i.number > 1 {
		name = fmt.Appendf(name, "/%s", i.id)
	}
	return uuid.NewSHA1(eventNames, name)
}

package eventlog

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
)

type commandKey struct{ actor, id string }

// ledger is what the log holds, as far as the members of one commit touch it: first as it was read under the lock, then
// with what each admitted member adds. It decides who is taken out.
type ledger struct {
	owner    string
	at       time.Time
	position int64
	versions map[string]int64 // of streams; absent: 0

	incarnation incarnation
	outcomes    map[commandKey]outcome
	consumed    consumed
	rows        rows

	members map[membershipKey]bool // those that were asked for, and those that changed since
	timers  map[timerKey]*timerRow // likewise; absent: there is none

	maxRooms map[string]int   // the log's
	rooms    map[roomsKey]int // in how many rooms those are who enter bounded ones
}

// admit adds a member's rows, or says what takes it out; then nothing of it is added.
func (g *ledger) admit(p *prepared) (Committed, error) {
	if repeated := g.repeated(p); repeated != nil {
		return Committed{}, repeated
	}
	if err := g.consumed.check(p); err != nil {
		return Committed{}, err
	}
	if err := g.conflict(p.stream, p.expected); err != nil {
		return Committed{}, err
	}
	if err := g.try(p); err != nil {
		return Committed{}, err
	}
	return g.add(p), nil
}

func (g *ledger) conflict(stream string, expected int64) error {
	if actual := g.versions[stream]; expected != AnyVersion && actual != expected {
		return &ConflictError{Stream: stream, Expected: expected, Actual: actual}
	}
	return nil
}

func (g *ledger) repeated(p *prepared) error {
	var found map[int]envelope.Result
	index := 0
	for _, e := range p.entries {
		if !e.command {
			continue
		}
		if first, ok := g.outcomes[commandKey{e.actor, e.cause}]; ok && e.cause != "" {
			if found == nil {
				found = map[int]envelope.Result{}
			}
			found[index] = again(first, e)
		}
		index++
	}
	if found == nil {
		return nil
	}
	return &RepeatedError{found}
}

// outcome is what came of a command, with the digest of that command; empty where it is not known.
type outcome struct {
	envelope.Result
	digest string
}

// again returns the outcome of a command whose id has one already: the first one if it is the same command.
func again(first outcome, e *entry) envelope.Result {
	same := first.digest == e.digest || first.digest == "" || e.digest == ""
	if same && first.Type == e.commandType && first.Stream == e.stream {
		first.TraceParent = e.traceParent
		return first.Result
	}
	return envelope.Result{Actor: e.actor, CommandID: e.cause, Type: e.commandType, Source: first.Source,
		Stream: e.stream, Kind: envelope.Refused, Code: refusal.IDReused,
		Text: fmt.Sprintf("this id stands for another command (%s) already", first.Type), TraceParent: e.traceParent}
}

func (g *ledger) add(p *prepared) Committed {
	var c Committed
	if p.at.After(g.at) {
		g.at = p.at
	}
	for _, e := range p.entries {
		if e.fired != nil {
			g.timer(timerKey{e.fired.Stream, e.fired.Key}, nil)
		}
		for i, d := range e.drafts {
			g.position++
			g.versions[e.stream]++
			g.rows.event(g, e, d, e.command && i == len(e.drafts)-1)
			g.note(e.stream, d)
		}
		if !e.command {
			continue
		}
		r := envelope.Result{Actor: e.actor, CommandID: e.cause, Type: e.commandType, Source: g.owner, Stream: e.stream,
			Kind: e.kind, Version: g.versions[e.stream], Position: g.position, Code: e.code, Text: e.text,
			TraceParent: e.traceParent}
		c.Results = append(c.Results, r)
		if e.cause != "" {
			g.outcomes[commandKey{e.actor, e.cause}] = outcome{r, e.digest}
			g.rows.outcomes = append(g.rows.outcomes, outcome{r, e.digest})
		}
	}
	g.consumed.add(p)
	c.Version, c.Position, c.At = g.versions[p.stream], g.position, g.at
	return c
}

// eventNames is the name space of event ids.
var eventNames = uuid.MustParse("0b1c6b60-3f0c-5f0e-8a41-2f6f0d3a9b17")

// eventID is the same whenever it is made. Versions of a stream are given again in a new incarnation, so from the second
// one on the incarnation is part of it.
func eventID(owner string, i incarnation, stream string, version int64) uuid.UUID {
	name := fmt.Appendf(nil, "%s/%s/%d", owner, stream, version)
	if i.number > 1 {
		name = fmt.Appendf(name, "/%s", i.id)
	}
	return uuid.NewSHA1(eventNames, name)
}

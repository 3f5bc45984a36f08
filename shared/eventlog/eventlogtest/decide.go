package eventlogtest

import (
	"crypto/rand"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/membership"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// Decide sends a command of a user to the command's stream, as the service of the log does: it loads the events that
// the decision needs into the state that the function create returns, lets the state decide, and commits the decided
// events. So a test can send a command and then check the answer of a query. Decide returns the outcome, but does not
// store it. A command whose fields do not match their declaration is refused, and so is a command of a user who is not
// a member of the declared room, or that requires a part of another stream that does not exist.
func Decide[S decidetest.State](l *Log, create func(stream string) S, user string, command proto.Message) decidetest.Outcome {
	l.t.Helper()
	declared, ok := l.Catalog.CommandOf(command)
	if !ok {
		l.t.Fatalf("%T is not declared as a command", command)
	}
	if err := declared.Check(command); err != nil {
		refused, ok := refusal.Of(err)
		if !ok {
			l.t.Fatalf("check %T: %v", command, err)
		}
		return decidetest.Outcome{Code: refused.Code}
	}
	by := catalog.Origin{Actor: user, CommandID: rand.Text(), At: time.Now()}
	stream := declared.Stream(command, by)
	wanted := eventlog.Selection{Newest: l.Catalog.ClassOf(catalog.KindOf(stream)) == routingv1.Class_CLASS_COUNTER}
	if subject := declared.Subject(command, by); subject != "" {
		wanted.Subjects = []string{subject}
	}
	wanted.Stream = stream
	loaded, err := l.Load(l.t.Context(), wanted)
	l.require(err)
	state := create(stream)
	for _, e := range loaded.Events {
		m, err := l.Catalog.Decode(e.Type, e.Body)
		l.require(err)
		state.Evolve(catalog.NewFact(e.Actor, e.Version, e.Time, nil), m)
	}
	by.Version = loaded.Version
	if declared.CountMembersUpTo > 0 {
		rooms, err := membership.Facts(l.t.Context(), l.Log, []membership.Fact{{Room: declared.MemberOf(command, by), User: user,
			MaxCounted: declared.CountMembersUpTo}})
		l.require(err)
		by.Room = rooms[0]
	}
	outcome := decidetest.Decide(l.t, state, by, command)
	decided := eventlog.Decided{Actor: user, Type: declared.Name, MemberOf: declared.MemberOf(command, by),
		Requires: declared.Requires(command, by)}
	if outcome.Code != "" {
		decided.Kind = envelope.Refused
	}
	w := eventlog.Write{Stream: stream, Expected: eventlog.AnyVersion, Commands: []eventlog.Decided{decided}}
	for _, e := range outcome.Events {
		w.Appends = append(w.Appends, l.appendOf(decidetest.By(user, e)))
	}
	err = l.commit(w)
	var refused *eventlog.RefusedError
	if errors.As(err, &refused) {
		return decidetest.Outcome{Code: refused.Refusals[0].Code}
	}
	l.require(err)
	return outcome
}

package eventlogtest

import (
	"crypto/rand"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// Decide sends a command of a user to the command's stream, as the service of the log does: it loads the events that
// the decision needs into the state that the function create returns, lets the state decide, and commits the decided
// events. So a test can send a command and then check the answer of a query. Decide returns the outcome, but does not
// store it. A command whose fields do not match their declaration is refused.
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
	stream, wanted := declared.Stream(command, by), eventlog.Selection{}
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
	outcome := decidetest.Decide(l.t, state, by, command)
	if len(outcome.Events) > 0 {
		l.Append(user, outcome.Events...)
	}
	return outcome
}

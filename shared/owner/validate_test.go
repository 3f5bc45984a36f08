//go:build integration

package owner

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/process"
)

// The parts of a service do not match the declarations of the catalog. The service must not start, and the error must
// name the part.
func TestValidate_RefusesAServiceThatLacksAPart(t *testing.T) {
	c, err := catalog.Load()
	require.NoError(t, err)
	s := &Service{name: "toy", env: process.Env{Catalog: c}, aggregates: map[string]NewState{}}
	for _, command := range c.CommandsOf("toy") {
		if command.Kind() != "diary" {
			s.HandleCommands(command.Kind(), func(string) State { return nil })
		}
	}
	require.EqualError(t, s.validate(), `command toy.write_note: there is no aggregate for streams of kind "diary"`)
	s.HandleCommands("diary", func(string) State { return nil })
	require.NoError(t, s.validate())
	s.Project(projection.Declare("notes", projection.Options{Streams: []string{"diary"}, Tables: []string{"notes"}}))
	require.EqualError(t, s.validate(), "projection notes: event toy.note_written of streams of kind diary has no function; "+
		"add one with projection.On, or name the event in Ignore")
	s.projections = nil
	for wrong, topics := range map[string][]string{
		`a reaction to "chat-evens": no service declares this topic`:                              {"chat-evens"},
		`a reaction to "toy-events": it is the service's own topic; use a projection`:             {"toy-events"},
		`a reaction to "user-actions": the topic contains state of presence, not events of a log`: {"user-actions"},
		`two reactions to "chat-events": they would share its checkpoints`:                        {"chat-events", "chat-events"},
	} {
		s.reactions = nil
		for _, topic := range topics {
			s.React(topic, consume.FromNow(), nil)
		}
		require.ErrorContains(t, s.validate(), wrong)
	}
	s.reactions = nil
	s.React("chat-events", consume.FromNow(), nil)
	require.NoError(t, s.validate())
}

// A service answers a query for which it names no projection, or a projection that does not exist. The service must not
// start.
func TestValidate_RefusesAQueryWithoutAProjection(t *testing.T) {
	c, err := catalog.Load()
	require.NoError(t, err)
	s := &Service{name: "chat", env: process.Env{Catalog: c}, aggregates: map[string]NewState{}}
	for _, command := range c.CommandsOf("chat") {
		s.HandleCommands(command.Kind(), func(string) State { return nil })
	}
	conversations := projection.Declare("conversations", projection.Options{Streams: []string{"conversation"},
		Tables: []string{"conversations"}})
	for _, e := range c.EventsOf("conversation") {
		conversations.Ignore(e.Type.New().Interface())
	}
	s.Project(conversations)
	s.served = []string{"/edumatrix.chat.v1.ReactionService/"}
	s.queries = consistency.Projections{}
	require.EqualError(t, s.validate(), "query chat.reactions is not declared to read a projection")
	s.queries = consistency.Projections{"chat.reactions": "timers"}
	require.EqualError(t, s.validate(), `query chat.reactions: there is no projection "timers"`)
	s.queries = consistency.Projections{"chat.reactions": "conversations"}
	require.NoError(t, s.validate())
}

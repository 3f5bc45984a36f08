package decidetest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// talk is an aggregate that stores its events, and whose decisions are made by the function decide.
type talk struct {
	events []proto.Message
	facts  []catalog.Fact
	decide func(*talk) ([]proto.Message, error)
}

func (s *talk) Decide(catalog.Origin, proto.Message) ([]proto.Message, error) { return s.decide(s) }

func (s *talk) Evolve(f catalog.Fact, event proto.Message) {
	s.facts, s.events = append(s.facts, f), append(s.events, event)
}

// failing is a decidetest.T that records the text with which a test failed.
type failing struct{ text string }

func (*failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	panic(f)
}

// fails calls f and returns the text with which f failed its decidetest.T, or "" if f did not fail it.
func fails(t *testing.T, f func(decidetest.T)) string {
	t.Helper()
	failed := &failing{}
	func() {
		defer func() {
			if p := recover(); p != nil && p != failed {
				panic(p)
			}
		}()
		f(failed)
	}()
	return failed.text
}

func sent(body string) *chatv1.MessageSent {
	return &chatv1.MessageSent{ConversationId: "7", MessageId: "m", Body: body}
}

func TestDecide_FailsForAnAggregateThatBreaksTheRules(t *testing.T) {
	t.Parallel()
	for text, decide := range map[string]func(*talk) ([]proto.Message, error){
		"broken": func(*talk) ([]proto.Message, error) { return nil, errors.New("it is broken") },
		"without a text": func(*talk) ([]proto.Message, error) {
			return nil, &refusal.Error{Code: refusal.NotFound}
		},
		"leads to events": func(*talk) ([]proto.Message, error) {
			return []proto.Message{sent("a")}, refusal.New(refusal.NotFound, "there is no message")
		},
		"changes the state": func(s *talk) ([]proto.Message, error) {
			s.Evolve(catalog.Fact{}, sent(""))
			return s.events, nil
		},
	} {
		got := fails(t, func(t decidetest.T) {
			decidetest.Decide(t, &talk{decide: decide}, decidetest.Origin("ann"), &chatv1.SendMessage{})
		})
		require.Contains(t, got, text)
	}
}

func TestEvolve_AppliesEventsAsTheLogContainsThem(t *testing.T) {
	t.Parallel()
	s := &talk{}
	decidetest.Evolve(t, s, "conversation:7", decidetest.By("ann", sent("secret")), decidetest.By("bob", sent("too")))
	require.Len(t, s.events, 2)
	require.True(t, proto.Equal(sent(""), s.events[0]), "personal fields are not in the log: %v", s.events[0])
	require.Equal(t, "bob", s.facts[1].Actor)
	require.EqualValues(t, 2, s.facts[1].Version)
	require.True(t, s.facts[1].At().After(s.facts[0].At()))

	evolve := func(m proto.Message) string {
		return fails(t, func(t decidetest.T) { decidetest.Evolve(t, s, "conversation:8", decidetest.By("ann", m)) })
	}
	require.Contains(t, evolve(sent("")), "belongs to the stream conversation:7, not to conversation:8")
	require.Contains(t, evolve(&chatv1.SendMessage{}), "is not declared as an event")
}

func TestCase_FailsForAnotherOutcome(t *testing.T) {
	t.Parallel()
	again := refusal.New(refusal.NotFound, "it is not there")
	once := func(s *talk) ([]proto.Message, error) { // sends one message, and refuses a second one
		if len(s.events) > 0 {
			return nil, again
		}
		return []proto.Message{sent("a")}, nil
	}
	run := func(c decidetest.Case) string {
		return fails(t, func(t decidetest.T) { c.Run(t, "conversation:7", &talk{decide: once}) })
	}
	before := decidetest.By("ann", sent("a"))
	command := &chatv1.SendMessage{}
	require.Empty(t, run(decidetest.Given().When("ann", command).Then(sent("a"))))
	require.Empty(t, run(decidetest.Given(before).When("ann", command).Refused(refusal.NotFound)))
	for _, c := range []decidetest.Case{
		decidetest.Given(before).When("ann", command).Then(sent("a")),
		decidetest.Given(before).When("ann", command).Refused(refusal.NotAMember),
		decidetest.Given(before).When("ann", command).Unchanged(),
		decidetest.Given().When("ann", command).Then(sent("b")),
		decidetest.Given().When("ann", command).Unchanged(),
		decidetest.Given().When("ann", command).Refused(refusal.NotFound),
	} {
		require.Contains(t, run(c), "want", "%+v", c)
	}
}

func TestOutcome_Equal(t *testing.T) {
	t.Parallel()
	events := func(all ...proto.Message) decidetest.Outcome { return decidetest.Outcome{Events: all} }
	expecting := func(version catalog.Version) decidetest.Outcome {
		return events(catalog.Expecting{Message: sent("a"), Version: version})
	}
	require.True(t, events(sent("a"), sent("b")).Equal(events(sent("a"), sent("b"))))
	require.True(t, expecting(1).Equal(expecting(1)))
	require.True(t, expecting(1).Equal(events(sent("a"))))
	require.False(t, expecting(1).Equal(expecting(2)))
	for _, other := range []decidetest.Outcome{{}, {Code: refusal.NotFound}, events(sent("a")), events(sent("b"), sent("a")),
		events(sent("a"), sent("b"), sent("c"))} {
		require.False(t, events(sent("a"), sent("b")).Equal(other), "%v", other)
		require.False(t, other.Equal(events(sent("a"), sent("b"))), "%v", other)
	}
	require.False(t, decidetest.Outcome{Code: refusal.NotFound}.Equal(decidetest.Outcome{Code: refusal.NotAMember}))
}

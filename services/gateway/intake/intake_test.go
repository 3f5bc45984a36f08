package intake_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// broker records the published commands. It can be made unavailable, or hold publishers back.
type broker struct {
	mu    sync.Mutex
	away  bool
	held  chan struct{}
	calls int
	taken []envelope.Command
}

func (b *broker) Publish(_ string, messages ...*message.Message) error {
	b.mu.Lock()
	held := b.held
	b.calls++
	b.mu.Unlock()
	if held != nil {
		<-held
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return errors.New("no broker")
	}
	for _, m := range messages {
		c, err := envelope.ReadCommand(m)
		if err != nil {
			return err
		}
		b.taken = append(b.taken, c)
	}
	return nil
}

func (b *broker) Close() error { return nil }

func (b *broker) set(away bool) { b.mu.Lock(); b.away = away; b.mu.Unlock() }

func (b *broker) commands() []envelope.Command {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.taken)
}

type setup struct {
	catalog *catalog.Catalog
	broker  *broker
	intake  *intake.Intake
}

func begin(t *testing.T, o intake.Options) *setup {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	s := &setup{catalog: c, broker: &broker{}}
	o.Catalog, o.Publisher, o.Log = c, s.broker, slog.New(slog.DiscardHandler)
	if o.Ready == nil {
		o.Ready = func(string) bool { return true }
	}
	s.intake = intake.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.intake.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *setup) command(t *testing.T, actor, id, body string) intake.Command {
	t.Helper()
	declared, _ := s.catalog.Command("chat.send_message")
	c, err := intake.Read(declared, actor, id, frame.Data{Bytes: fmt.Appendf(nil, `{"conversation_id":"g","body":%q}`, body)}, 0)
	require.NoError(t, err)
	return c
}

// send sends a command and returns the channel of its answers.
func (s *setup) send(sender *intake.Sender, c intake.Command) chan intake.Answer {
	answers := make(chan intake.Answer, 4)
	sender.Send(context.Background(), c, func(a intake.Answer) { answers <- a })
	return answers
}

func (s *setup) committed(actor, id string, version catalog.Version) envelope.Outcome {
	return envelope.Outcome{Actor: actor, CommandID: id, Type: "chat.send_message", Source: "chat",
		Stream: "conversation:g", Kind: envelope.Committed, Version: version, Position: catalog.Position(10 * version)}
}

func next(t *testing.T, answers chan intake.Answer) intake.Answer {
	t.Helper()
	select {
	case a := <-answers:
		return a
	case <-time.After(5 * time.Second):
		t.Fatal("no answer")
		return intake.Answer{}
	}
}

func TestSend_IsAnsweredByTheOutcome(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	sender := s.intake.NewSender()
	defer sender.Close()
	answers := s.send(sender, s.command(t, "alice", "c1", "hi"))
	require.Eventually(t, func() bool { return len(s.broker.commands()) == 1 }, 5*time.Second, time.Millisecond)
	got := s.broker.commands()[0]
	require.Equal(t, "chat.send_message", got.Type)
	require.Equal(t, "conversation:g", got.Stream)
	require.Equal(t, "alice", got.Actor)

	s.intake.Resolve(s.committed("bob", "c1", 3)) // the outcome of another user
	other := s.committed("alice", "c1", 3)        // the outcome of another type of command with the same id
	other.Type = "chat.leave"
	s.intake.Resolve(other)
	s.intake.Resolve(s.committed("alice", "c1", 7))
	a := next(t, answers)
	require.Nil(t, a.Refusal)
	require.Equal(t, envelope.Committed, a.Kind)
	require.EqualValues(t, 7, a.Version)
	require.EqualValues(t, 70, sender.Position("chat"))
	require.Zero(t, sender.Position("feed"))
}

func TestSend_KeepsTheOrderAndBatchesWaitingCommands(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	s.broker.held = make(chan struct{})
	sender := s.intake.NewSender()
	defer sender.Close()
	for n := range 300 {
		s.send(sender, s.command(t, "alice", fmt.Sprint("c", n), "hi"))
	}
	close(s.broker.held)
	require.Eventually(t, func() bool { return len(s.broker.commands()) == 300 }, 5*time.Second, time.Millisecond)
	for n, c := range s.broker.commands() {
		require.Equal(t, fmt.Sprint("c", n), c.ID)
	}
	require.Less(t, s.broker.calls, 10)
}

func TestSend_AnswersQueuedOnceKafkaHasTheCommandAndTheOutcomeLater(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{Patience: 30 * time.Millisecond})
	sender := s.intake.NewSender()
	defer sender.Close()
	answers := s.send(sender, s.command(t, "alice", "c1", "hi"))
	first := next(t, answers)
	require.Equal(t, refusal.Queued, first.Refusal.Code)
	require.False(t, first.Late)

	s.intake.Resolve(envelope.Outcome{Actor: "alice", CommandID: "c1", Source: "chat", Stream: "conversation:g",
		Type: "chat.send_message", Kind: envelope.Refused, Code: refusal.NotAMember, Text: "no"})
	later := next(t, answers)
	require.True(t, later.Late)
	require.Equal(t, refusal.NotAMember, later.Refusal.Code)
}

// The outcome of a command arrives while the client is being answered with "queued". The client must get "queued"
// first.
func TestSend_TheOutcomeWaitsUntilQueuedIsAnswered(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{Patience: time.Second})
	sender := s.intake.NewSender()
	defer sender.Close()
	answers, overtaken := make(chan intake.Answer, 4), make(chan struct{})
	sender.Send(context.Background(), s.command(t, "alice", "c1", "hi"), func(a intake.Answer) {
		if a.Late {
			close(overtaken)
		} else {
			go s.intake.Resolve(s.committed("alice", "c1", 1))
			select {
			case <-overtaken:
			case <-time.After(50 * time.Millisecond): // the outcome waits, as it should
			}
		}
		answers <- a
	})
	require.False(t, next(t, answers).Late, "the outcome was answered before \"queued\"")
	last := next(t, answers)
	require.True(t, last.Late)
	require.Equal(t, envelope.Committed, last.Kind)
}

// The outcomes of commands arrive at about the time when Options.Patience has passed. A client may get "queued" before
// the outcome, but no answer after the outcome.
func TestSend_TheOutcomeIsTheLastAnswer(t *testing.T) {
	t.Parallel()
	const commands, patience = 3000, 2 * time.Millisecond
	s := begin(t, intake.Options{Patience: patience, SenderWaiting: commands})
	sender := s.intake.NewSender()
	defer sender.Close()
	heard := make([]chan intake.Answer, commands)
	for n := range commands {
		c := s.command(t, "alice", fmt.Sprint("c", n), "hi")
		heard[n] = s.send(sender, c)
		time.AfterFunc(patience-50*time.Microsecond, func() { s.intake.Resolve(s.committed("alice", c.ID, 1)) })
	}
	for n, answers := range heard {
		first := next(t, answers)
		if first.Refusal != nil && first.Refusal.Code == refusal.Queued {
			first = next(t, answers)
			require.True(t, first.Late, "c%d", n)
		}
		if first.Refusal == nil {
			require.Equal(t, envelope.Committed, first.Kind, "c%d", n)
		} else {
			require.Equal(t, refusal.Unavailable, first.Refusal.Code, "c%d", n)
		}
		require.Empty(t, answers, "c%d: an answer after the outcome", n)
	}
}

func TestSend_AnswersUnavailableWithoutKafkaAndDropsTheCommand(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{Patience: 30 * time.Millisecond})
	s.broker.set(true)
	sender := s.intake.NewSender()
	defer sender.Close()
	answers := s.send(sender, s.command(t, "alice", "c1", "hi"))
	require.Equal(t, refusal.Unavailable, next(t, answers).Refusal.Code)
	s.broker.set(false)

	n := 1
	require.Eventually(t, func() bool { // the line may wait longer than Patience before it publishes again
		n++
		again := s.send(sender, s.command(t, "alice", fmt.Sprint("c", n), "hi"))
		return next(t, again).Refusal.Code == refusal.Queued
	}, 10*time.Second, time.Millisecond)
	for _, c := range s.broker.commands() {
		require.NotEqual(t, "c1", c.ID, "a command answered as unavailable must not be published")
	}
}

func TestSend_AShortOutageOfTheBrokerIsNotNoticed(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	s.broker.set(true)
	sender := s.intake.NewSender()
	defer sender.Close()
	answers := s.send(sender, s.command(t, "alice", "c1", "hi"))
	require.Eventually(t, func() bool { s.broker.mu.Lock(); defer s.broker.mu.Unlock(); return s.broker.calls > 1 },
		5*time.Second, time.Millisecond)
	s.broker.set(false)
	require.Eventually(t, func() bool { return len(s.broker.commands()) == 1 }, 5*time.Second, time.Millisecond)
	s.intake.Resolve(s.committed("alice", "c1", 1))
	require.Equal(t, envelope.Committed, next(t, answers).Kind)
}

func TestSend_OneIDFromTwoConnectionsAnswersBothAndFromTwoUsersEachItsOwn(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	one, two, other := s.intake.NewSender(), s.intake.NewSender(), s.intake.NewSender()
	defer one.Close()
	defer two.Close()
	defer other.Close()
	first, second := s.send(one, s.command(t, "alice", "c1", "hi")), s.send(two, s.command(t, "alice", "c1", "hi"))
	bobs := s.send(other, s.command(t, "bob", "c1", "hi"))
	s.intake.Resolve(s.committed("alice", "c1", 1))
	require.EqualValues(t, 1, next(t, first).Version)
	require.EqualValues(t, 1, next(t, second).Version)
	s.intake.Resolve(s.committed("bob", "c1", 2))
	require.EqualValues(t, 2, next(t, bobs).Version)
}

func TestSend_RefusesAnIDInUseForAnotherCommand(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	sender := s.intake.NewSender()
	defer sender.Close()
	s.send(sender, s.command(t, "alice", "c1", "hi"))
	declared, _ := s.catalog.Command("chat.leave")
	c, err := intake.Read(declared, "alice", "c1", frame.Data{Bytes: []byte(`{"conversation_id":"g"}`)}, 0)
	require.NoError(t, err)
	require.Equal(t, refusal.IDReused, next(t, s.send(sender, c)).Refusal.Code)
	other := s.send(s.intake.NewSender(), s.command(t, "alice", "c1", "something else"))
	require.Equal(t, refusal.IDReused, next(t, other).Refusal.Code, "the same type of command, but with other data")
}

// A panic happens while a client is answered with an outcome or with "queued". The panic must affect only this answer:
// other clients that wait for the same outcome, and later commands, must get their answers.
func TestSend_APanicInAnAnswerCostsThatAnswer(t *testing.T) {
	t.Parallel()
	for name, patience := range map[string]time.Duration{"the outcome": time.Minute, "the timer": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, intake.Options{Patience: patience, Guard: guard.New(slog.New(slog.DiscardHandler), nil)})
			eve, alice := s.intake.NewSender(), s.intake.NewSender()
			panicked := make(chan bool, 8)
			eve.Send(t.Context(), s.command(t, "u", "c1", "hi"), func(intake.Answer) {
				panicked <- true
				panic("injected into an answer")
			})
			second := s.send(alice, s.command(t, "u", "c1", "hi"))
			if name == "the outcome" {
				s.intake.Resolve(s.committed("u", "c1", 1))
			}
			<-panicked
			a := next(t, second)
			if name == "the timer" {
				require.Contains(t, []string{refusal.Queued, refusal.Unavailable}, a.Refusal.Code)
			} else {
				require.EqualValues(t, 1, a.Version)
			}
			eve.Close()
			third := s.send(alice, s.command(t, "u", "c2", "hi"))
			s.intake.Resolve(s.committed("u", "c2", 2))
			next(t, third)
		})
	}
}

func TestSend_IsLimitedByCountAndBytes(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]intake.Options{
		"count of a connection": {SenderWaiting: 2}, "bytes of a connection": {SenderBytes: 1000},
		"count of the gateway": {MaxWaiting: 2}, "bytes of the gateway": {MaxBytes: 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, o)
			sender := s.intake.NewSender()
			defer sender.Close()
			first := s.send(sender, s.command(t, "alice", "c1", "hi"))
			s.send(sender, s.command(t, "alice", "c2", strings.Repeat("x", 200)))
			over := s.command(t, "alice", "c3", strings.Repeat("x", 700))
			require.Equal(t, refusal.TooManyWaiting, next(t, s.send(sender, over)).Refusal.Code)
			s.intake.Resolve(s.committed("alice", "c1", 1))
			next(t, first)
		})
	}
}

func TestSend_RefusesCommandsBeforeSetReadyAndAfterClose(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{Ready: func(string) bool { return false }})
	sender := s.intake.NewSender()
	defer sender.Close()
	require.Equal(t, refusal.Unavailable, next(t, s.send(sender, s.command(t, "alice", "c1", "hi"))).Refusal.Code)
	s.intake.Close(context.Background())
	require.Equal(t, refusal.Unavailable, next(t, s.send(sender, s.command(t, "alice", "c2", "hi"))).Refusal.Code)
	require.Empty(t, s.broker.commands())
}

func TestClose_WaitsForCommandsInFlight(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	sender := s.intake.NewSender()
	defer sender.Close()
	answers := s.send(sender, s.command(t, "alice", "c1", "hi"))
	closed := make(chan struct{})
	go func() { s.intake.Close(context.Background()); close(closed) }()
	select {
	case <-closed:
		t.Fatal("a command waits for its outcome")
	case <-time.After(20 * time.Millisecond):
	}
	s.intake.Resolve(s.committed("alice", "c1", 1))
	next(t, answers)
	<-closed
}

func TestSender_CommandsOfAClosedConnectionAreStillPublished(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	s.broker.held = make(chan struct{})
	sender := s.intake.NewSender()
	s.send(sender, s.command(t, "alice", "c1", "hi"))
	s.send(sender, s.command(t, "alice", "c2", "hi"))
	sender.Close()
	close(s.broker.held)
	require.Eventually(t, func() bool { return len(s.broker.commands()) == 2 }, 5*time.Second, time.Millisecond)
}

func TestRead_RefusesDataThatDoesNotMatchTheDeclaration(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	declared, _ := s.catalog.Command("chat.send_message")
	for name, data := range map[string]string{
		"unknown field": `{"conversation_id":"g","body":"x","colour":"red"}`,
		"wrong type":    `{"conversation_id":7,"body":"x"}`, "missing": `{"conversation_id":"g"}`,
		"no id": `{"conversation_id":"a b","body":"x"}`, "nothing": ``,
		"NUL": `{"conversation_id":"g","body":"a\u0000b"}`,
	} {
		_, err := intake.Read(declared, "alice", "", frame.Data{Bytes: []byte(data)}, 0)
		r, ok := refusal.Of(err)
		require.True(t, ok, "%s: %v", name, err)
		require.Equal(t, refusal.InvalidField, r.Code, name)
	}
	_, err := intake.Read(declared, "alice", "", frame.Data{Bytes: []byte(`{`)}, 0)
	require.ErrorContains(t, err, refusal.Malformed)
	_, err = intake.Read(declared, "alice", "not an id", frame.Data{Bytes: []byte(`{"conversation_id":"g","body":"x"}`)}, 0)
	require.ErrorContains(t, err, "command_id")
	made, err := intake.Read(declared, "alice", "", frame.Data{Bytes: []byte(`{"conversation_id":"g","body":"x"}`)}, 0)
	require.NoError(t, err)
	require.True(t, catalog.ValidID(made.ID))
}

func TestSend_ACommandWithALimitedTimeContainsItsExpiry(t *testing.T) {
	t.Parallel()
	s := begin(t, intake.Options{})
	sender := s.intake.NewSender()
	defer sender.Close()
	declared, _ := s.catalog.Command("chat.send_message")
	short := *declared
	short.ExpiresAfter = 30 * time.Second
	before := time.Now()
	c, err := intake.Read(&short, "alice", "c1", frame.Data{Bytes: []byte(`{"conversation_id":"g","body":"ring"}`)}, 0)
	require.NoError(t, err)
	s.send(sender, c)
	s.send(sender, s.command(t, "alice", "c2", "without a limit"))
	require.Eventually(t, func() bool { return len(s.broker.commands()) == 2 }, 5*time.Second, time.Millisecond)
	got := s.broker.commands()
	require.WithinRange(t, got[0].Expires, before.Add(30*time.Second), time.Now().Add(30*time.Second))
	require.Zero(t, got[1].Expires)
}

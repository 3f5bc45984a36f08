package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/retry"
	"github.com/edumatrix/interlinked/shared/service"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// running is a service that a test has started.
type running struct {
	t         *testing.T
	address   string
	publisher *bus.Publisher
	cancel    context.CancelFunc
	ended     chan error
}

// run starts the service chat with the parts that the function prepare adds, and waits until the service is ready.
func run(t *testing.T, prepare func(*service.Parts) error) *running {
	t.Helper()
	return start(t, prepare, func(ready <-chan struct{}, ended <-chan error) {
		select {
		case <-ready:
		case err := <-ended:
			t.Fatalf("the service ended: %v", err)
		}
	})
}

// start starts the service chat with the parts that the function prepare adds. Then it calls the function await with
// two channels: the first is closed when the service is ready, and the second receives the error of Run.
func start(t *testing.T, prepare func(*service.Parts) error, await func(<-chan struct{}, <-chan error)) *running {
	t.Helper()
	kafka := meshtest.EmbeddedKafka(t)
	declared, err := catalog.Load()
	require.NoError(t, err)
	_, err = kafka.EnsureTopics(t.Context(), declared.Topics(""))
	require.NoError(t, err)
	traces, err := telemetry.Start(t.Context(), telemetry.Options{Service: "chat"})
	require.NoError(t, err)
	publisher, err := bus.NewPublisher(kafka, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = publisher.Close() })
	port, ready := meshtest.FreePort(t), make(chan struct{})
	s, err := service.Open(process.Env{Stores: &backend.Stores{Kafka: kafka}, Catalog: declared, Telemetry: traces,
		Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
		Config: config.Config{Service: "chat", Host: "127.0.0.1", Port: port, ServiceSecret: "of this test"}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	r := &running{t: t, address: fmt.Sprintf("http://127.0.0.1:%d", port), publisher: publisher, cancel: cancel,
		ended: make(chan error, 1)}
	go func() { r.ended <- s.Run(ctx, prepare) }()
	await(ready, r.ended)
	return r
}

// send publishes a command with the given body.
func (r *running) send(body string) {
	r.t.Helper()
	m := message.NewMessage(body, message.Payload(body))
	m.Metadata.Set("partition_key", "conversation:1")
	require.NoError(r.t, r.publisher.Publish(catalog.CommandTopic("chat"), m))
}

// status returns the HTTP status with which the service answers a request, or 0 if the service does not answer.
func (r *running) status(path string) int {
	response, err := http.Get(r.address + path)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode
}

func closed(signal <-chan struct{}) bool {
	select {
	case <-signal:
		return true
	default:
		return false
	}
}

func await(t *testing.T, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(30 * time.Second):
		t.Fatal(what + " does not happen")
	}
}

// A service is stopped while it handles a command. The service must finish this command and begin nothing new. Until
// the command is finished, the service must report that it is not ready, and its background parts and its HTTP listener
// must go on.
func TestRun_FinishesCommandsInFlight(t *testing.T) {
	t.Parallel()
	handling, release := make(chan struct{}), make(chan struct{})
	intakeEnded, backgroundEnded, finished := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var handled []string
	r := run(t, func(p *service.Parts) error {
		p.WithIntake("timers", func(ctx context.Context) error {
			defer close(intakeEnded)
			<-ctx.Done()
			return nil
		})
		p.Background("relay", func(ctx context.Context) error {
			defer close(backgroundEnded)
			<-ctx.Done()
			return nil
		})
		p.Finish(func() { close(finished) })
		return p.ConsumeCommands(func(m *message.Message) error {
			if len(handled) == 0 {
				close(handling)
				<-release
			}
			handled = append(handled, string(m.Payload))
			return nil
		}, nil)
	})
	require.Equal(t, http.StatusOK, r.status("/readyz"))

	r.send("first")
	await(t, "the command is handled", handling)
	r.cancel()
	await(t, "the intake ends", intakeEnded)
	meshtest.Eventually(t, "the service is not ready", func() bool {
		return r.status("/readyz") == http.StatusServiceUnavailable
	})
	require.Equal(t, http.StatusOK, r.status("/livez"))
	require.False(t, closed(finished), "a command is still in flight")
	require.False(t, closed(backgroundEnded), "a command is still in flight")

	close(release)
	await(t, "the wait for work in flight", finished)
	require.NoError(t, <-r.ended)
	require.True(t, closed(backgroundEnded))
	require.Equal(t, []string{"first"}, handled)
	require.Zero(t, r.status("/livez"))
}

// A part of a running service returns an error. The service must stop with this error, and the error must name the
// service and the part.
func TestRun_EndsWithTheErrorOfAPart(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	fail := make(chan struct{})
	r := run(t, func(p *service.Parts) error {
		p.Background("relay", func(context.Context) error { <-fail; return broken })
		return nil
	})
	close(fail)
	err := <-r.ended
	require.ErrorIs(t, err, broken)
	require.ErrorContains(t, err, "chat: relay: broken")
}

// A part of a service cannot be prepared. The service must return the error and must not become ready.
func TestRun_EndsIfAPartCannotBePrepared(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	start(t, func(*service.Parts) error { return broken }, func(ready <-chan struct{}, ended <-chan error) {
		require.ErrorIs(t, <-ended, broken)
		require.False(t, closed(ready))
	})
}

// A command and an event of another owner cannot be handled, and become dead letters. The command must get an outcome
// before that, because its sender waits for one. The event must not get an outcome.
func TestConsume_OnlyCommandsGetAnOutcomeBeforeTheDeadLetter(t *testing.T) {
	t.Parallel()
	outcomes := make(chan string, 2)
	failed := make(chan struct{})
	r := run(t, func(p *service.Parts) error {
		bad := func(*message.Message) error { return retry.Permanent(errors.New("it cannot be handled")) }
		if err := p.Consume("user-actions", bus.SubscriberOptions{}, func(m *message.Message) error {
			defer close(failed)
			return bad(m)
		}); err != nil {
			return err
		}
		return p.ConsumeCommands(bad, func(_ context.Context, m *message.Message, _ error) error {
			outcomes <- string(m.Payload)
			return nil
		})
	})
	event := message.NewMessage("event", message.Payload("event"))
	event.Metadata.Set("partition_key", "user:bob")
	require.NoError(t, r.publisher.Publish("user-actions", event))
	await(t, "the event fails", failed)
	r.send("command")
	select {
	case got := <-outcomes:
		require.Equal(t, "command", got)
	case <-time.After(30 * time.Second):
		t.Fatal("the command gets no outcome")
	}
	r.cancel()
	require.NoError(t, <-r.ended)
	require.Empty(t, outcomes)
}

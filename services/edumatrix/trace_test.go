//go:build integration

package edumatrix

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/process"
)

// startTogether runs all five services in this process, with embedded Redis and Kafka and a new database, and keeps the
// trace spans of the services in memory.
func startTogether(t *testing.T) (config.Config, *tracetest.InMemoryExporter) {
	t.Helper()
	environment := map[string]string{"JWT_SECRET": "a secret of this test, long enough", "PORT": fmt.Sprint(meshtest.FreePort(t))}
	for _, owner := range []string{"PRESENCE", "CHAT", "FEED", "NOTIFICATION"} {
		environment[owner+"_URL"] = fmt.Sprintf("http://127.0.0.1:%d", meshtest.FreePort(t))
	}
	c, err := config.Load(config.AllInOne, func(name string) string { return environment[name] })
	if err != nil {
		t.Fatal(err)
	}
	useSecrets(&c, secrets{JWTSecret: c.JWTSecret})
	c.Postgres = backend.Postgres{URL: meshtest.Postgres(t)}
	c.Redis, c.Kafka = meshtest.EmbeddedRedis(t), meshtest.EmbeddedKafka(t)
	declared, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := innerListeners(c.Peers)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	stores, err := process.Open(t.Context(), c, process.Needs{Postgres: true, Redis: true, Kafka: true}, declared, log)
	if err != nil {
		t.Fatal(err)
	}
	spans := tracetest.NewInMemoryExporter()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- together{configs: configs(c, listeners), stores: stores, declared: declared, log: log, lost: make(chan error),
			ready: func() { close(ready) }, exporter: spans}.run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := stores.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("not ready")
	}
	return c, spans
}

func dial(t *testing.T, c config.Config, user string, onEvent func(client.Event)) *client.Client {
	t.Helper()
	token, err := auth.Mint(c.JWTSecret, auth.User{ID: user}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := client.Dial(t.Context(), client.Options{URL: fmt.Sprintf("ws://127.0.0.1:%d/ws", c.Port), Token: token,
		OnEvent: onEvent})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// TestTrace_FromTheFrameToTheLastFanOut checks the trace of one message. Each span in the list want must belong to the
// given service, and each span after the first must be a child of the one before it.
func TestTrace_FromTheFrameToTheLastFanOut(t *testing.T) {
	t.Parallel()
	c, spans := startTogether(t)
	seen := make(chan client.Event, 16)
	bob := "bob-" + uuid.NewString()[:8]
	dial(t, c, bob, func(e client.Event) { seen <- e })
	alice := dial(t, c, "alice", nil)
	started, err := alice.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": bob})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Command(t.Context(), "chat.send_message", map[string]string{
		"conversation_id": strings.TrimPrefix(started.Stream, "conversation:"), "body": "traced"}); err != nil {
		t.Fatal(err)
	}
	for late := time.After(20 * time.Second); ; {
		select {
		case e := <-seen:
			if e.Type != "chat.message_sent" {
				continue
			}
		case <-late:
			t.Fatal("the message was not seen")
		}
		break
	}
	want := []struct{ service, name string }{
		{"gateway", "receive chat.send_message"}, {"gateway", "send chat-commands"}, {"chat", "process chat-commands"},
		{"chat", "decide chat.send_message"}, {"chat", "append "}, {"chat", "send chat-events"},
		{"gateway", "fan-out chat.message_sent"},
	}
	// The last spans end shortly after the client has received the event.
	var problem string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if problem = chain(spans.GetSpans(), want); problem == "" {
			return
		}
	}
	t.Fatal(problem)
}

// chain follows the parents of spans from the last span to the first one, and compares them with the expected spans. It
// returns the first difference, or an empty text.
func chain(all tracetest.SpanStubs, want []struct{ service, name string }) string {
	byID := map[string]tracetest.SpanStub{}
	var last *tracetest.SpanStub
	for i, s := range all {
		byID[s.SpanContext.SpanID().String()] = s
		if s.Name == want[len(want)-1].name {
			last = &all[i]
		}
	}
	if last == nil {
		return "no span " + want[len(want)-1].name
	}
	s := *last
	for i := len(want) - 1; i >= 0; i-- {
		service, _ := s.Resource.Set().Value("service.name")
		if !strings.HasPrefix(s.Name, want[i].name) || service.AsString() != want[i].service {
			return fmt.Sprintf("span %d from the first is %q of %s, want %q of %s", i, s.Name, service.AsString(),
				want[i].name, want[i].service)
		}
		if strings.HasPrefix(s.Name, "append ") && len(s.Links) == 0 {
			return "the append is not linked to the transaction that it shares with others"
		}
		if i == 0 {
			break
		}
		parent, ok := byID[s.Parent.SpanID().String()]
		if !ok {
			return fmt.Sprintf("%q has no parent in the trace", s.Name)
		}
		if parent.SpanContext.TraceID() != s.SpanContext.TraceID() {
			return fmt.Sprintf("%q is of another trace than %q", s.Name, parent.Name)
		}
		s = parent
	}
	return ""
}

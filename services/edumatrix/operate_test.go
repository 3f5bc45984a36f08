//go:build integration

package edumatrix

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// screen is the output of a subcommand.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// operator runs subcommands with environment variables that describe a mesh.
type operator struct {
	t   *testing.T
	env map[string]string
}

func operatorOf(t *testing.T, c config.Config) operator {
	t.Helper()
	env := map[string]string{"JWT_SECRET": c.JWTSecret, "KAFKA_BROKERS": strings.Join(c.Kafka.Brokers, ","),
		"TOPIC_PREFIX": c.Kafka.TopicPrefix, "DATA_DIR": t.TempDir()}
	for owner, url := range c.Peers {
		env[strings.ToUpper(owner)+"_URL"] = url
	}
	return operator{t, env}
}

func (o operator) terminal(out, complaints io.Writer) Terminal {
	return Terminal{In: strings.NewReader(""), Out: out, Err: complaints, Getenv: func(name string) string { return o.env[name] }}
}

// run runs a subcommand and returns its exit status and output.
func (o operator) run(args ...string) (status int, out, complaints string) {
	o.t.Helper()
	var printed, complained screen
	status = Main(args, o.terminal(&printed, &complained))
	return status, printed.String(), complained.String()
}

// does runs a subcommand that must succeed, and returns its output.
func (o operator) does(args ...string) string {
	o.t.Helper()
	status, out, complaints := o.run(args...)
	if status != 0 {
		o.t.Fatalf("edumatrix %s: status %d\n%s%s", strings.Join(args, " "), status, out, complaints)
	}
	return out
}

// talks is a direct conversation of alice and bob, with alice's connection.
type talks struct {
	t      *testing.T
	alice  *client.Client
	stream string
}

func talking(t *testing.T, c config.Config) *talks {
	t.Helper()
	alice := dial(t, c, "alice-"+uuid.NewString()[:8], nil)
	started, err := alice.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": "bob-" + uuid.NewString()[:8]})
	if err != nil {
		t.Fatal(err)
	}
	return &talks{t, alice, started.Stream}
}

func (x *talks) conversation() string { return strings.TrimPrefix(x.stream, "conversation:") }

func (x *talks) send(body string) client.Outcome {
	x.t.Helper()
	o, err := x.alice.Command(x.t.Context(), "chat.send_message", map[string]string{"conversation_id": x.conversation(), "body": body})
	if err != nil {
		x.t.Fatal(err)
	}
	return o
}

func TestLogShow_AStreamAsItIsNow(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o, x := operatorOf(t, c), talking(t, c)
	x.send("stays")
	x.send("goes")
	out := o.does("log", "show", x.stream, "--json")
	var third shown
	var data struct {
		MessageID string `json:"message_id"`
		Body      string `json:"body"`
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 {
		t.Fatalf("%q", lines)
	}
	if err := json.Unmarshal([]byte(lines[2]), &third); err != nil || json.Unmarshal(third.Data, &data) != nil {
		t.Fatal(err)
	}
	if third.Version != 3 || third.Owner != "chat" || third.Type != "chat.message_sent" || data.Body != "goes" {
		t.Fatalf("%+v", third)
	}
	if _, err := x.alice.Command(t.Context(), "chat.delete_message", map[string]string{
		"conversation_id": x.conversation(), "message_id": data.MessageID}); err != nil {
		t.Fatal(err)
	}
	out = o.does("log", "show", x.stream, "--owner", "chat")
	for _, want := range []string{" 1 chat.conversation_started ", `"body":"stays"`, " 3 chat.message_sent ", "(redacted)", " 4 chat.message_deleted "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing from\n%s", want, out)
		}
	}
	if strings.Contains(out, "goes") || strings.Contains(out, "\x1b") {
		t.Errorf("the output contains a redacted text or colours:\n%s", out)
	}
	for _, test := range []struct {
		args     []string
		status   int
		wantText string
	}{
		{[]string{"log", "show", "conversation:none"}, 1, "no log contains events"},
		{[]string{"log", "show", x.stream, "--owner", "feed"}, 1, "no log contains events"},
		{[]string{"log", "show", x.stream, "--owner", "nobody"}, 1, "chat, feed"},
		{[]string{"log", "list"}, 2, "show STREAM"},
	} {
		if status, _, complaints := o.run(test.args...); status != test.status || !strings.Contains(complaints, test.wantText) {
			t.Errorf("%v: status %d, %s", test.args, status, complaints)
		}
	}
	o.env["JWT_SECRET"] = "another one that is long enough too"
	if status, _, complaints := o.run("log", "show", x.stream); status != 1 || !strings.Contains(complaints, "SERVICE_SECRET") {
		t.Errorf("with another credential: status %d, %s", status, complaints)
	}
}

func TestEventsTail_ShowsNewEvents(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o, x := operatorOf(t, c), talking(t, c)
	x.send("before")
	start := func(args ...string) (out *screen, stop func()) {
		out = &screen{}
		var complained screen
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- tailEvents(ctx, o.terminal(out, &complained), args) }()
		stop = sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("tail: %v\n%s", err, complained.String())
			}
		})
		t.Cleanup(stop)
		return out, stop
	}
	everything, stopEverything := start("tail", "--from-start", "--json")
	newest, stopNewest := start("tail", "chat-events", "--all")
	meshtest.Eventually(t, "the tail from the start shows earlier messages", func() bool { return strings.Contains(everything.String(), "before") })
	// The second tail begins at the ends of the topics. The test cannot observe when this tail has started, so send
	// messages until the tail shows one.
	for n := 0; !strings.Contains(newest.String(), `"body":"after`); n++ {
		x.send(fmt.Sprint("after ", n))
		time.Sleep(20 * time.Millisecond)
		if n == 500 {
			t.Fatal("the tail shows no message")
		}
	}
	meshtest.Eventually(t, "positions are shown", func() bool { return strings.Contains(newest.String(), "is complete up to position") })
	meshtest.Eventually(t, "the tail from the start shows new messages", func() bool { return strings.Contains(everything.String(), "after 0") })
	stopEverything()
	stopNewest()
	if strings.Contains(newest.String(), "before") || strings.Contains(everything.String(), "mesh.position") {
		t.Errorf("one tail shows earlier messages, or the other shows positions:\n%s\n%s", newest, everything)
	}
	for _, line := range strings.Split(strings.TrimSpace(everything.String()), "\n") {
		var e shown
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Topic == "" || e.Type == "" || e.Problem != "" {
			t.Errorf("%s: %v", line, err)
		}
	}
	if status, _, complaints := o.run("events", "tail", "chat-event"); status != 2 || !strings.Contains(complaints, "chat-events") {
		t.Errorf("status %d: %s", status, complaints)
	}
}

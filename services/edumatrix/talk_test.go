//go:build integration

package edumatrix

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// unreadScreen is a terminal whose Write blocks at "message 0" until the channel in the field read is closed.
type unreadScreen struct {
	screen
	read chan struct{}
}

func (s *unreadScreen) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "message 0") {
		<-s.read
	}
	return s.screen.Write(p)
}

// openTerminal starts `edumatrix chat` of bob with alice. The returned function ends the subcommand.
func openTerminal(t *testing.T, c config.Config, out io.Writer) (end func()) {
	t.Helper()
	token, err := auth.Mint(c.JWTSecret, auth.User{ID: "bob"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	in, write := io.Pipe()
	t.Cleanup(func() { _ = write.Close() })
	ended := make(chan error, 1)
	go func() {
		ended <- talk(ctx, Terminal{In: in, Out: out, Err: io.Discard, Getenv: func(string) string { return "" }},
			[]string{"--url", fmt.Sprintf("ws://127.0.0.1:%d/ws", c.Port), "--token", token, "--to", "alice"})
	}()
	return func() {
		t.Helper()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// aliceToBob starts the conversation of alice with bob, and returns a function that sends a message of alice.
func aliceToBob(t *testing.T, c config.Config) (say func(body string)) {
	t.Helper()
	alice := dial(t, c, "alice", nil)
	started, err := alice.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": "bob"})
	if err != nil {
		t.Fatal(err)
	}
	return func(body string) {
		t.Helper()
		if _, err := alice.Command(t.Context(), "chat.send_message", map[string]string{
			"conversation_id": strings.TrimPrefix(started.Stream, "conversation:"), "body": body}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTalk_ATerminalThatIsNotReadMissesNothing stops reading a terminal for a while, as Ctrl-S does. Afterwards the
// terminal must show every message once and in order.
func TestTalk_ATerminalThatIsNotReadMissesNothing(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	out, arrived := &unreadScreen{read: make(chan struct{})}, make(chan struct{})
	end := openTerminal(t, c, out)
	await := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d lines are shown", what, strings.Count(out.String(), "\n"))
			}
		}
	}
	await("the first line", func() bool { return strings.Contains(out.String(), "type a line") })

	const messages = 2*unread + 50
	dial(t, c, "bob", func(e client.Event) {
		if e.Type == "chat.message_sent" && e.Version == 1+messages {
			close(arrived)
		}
	})
	say := aliceToBob(t, c)
	for n := range messages {
		say(fmt.Sprintf("message %d.", n))
	}
	<-arrived // another connection of bob has the messages, so the terminal's connection probably has them too
	close(out.read)
	await("the messages that were not read", func() bool { return strings.Contains(out.String(), fmt.Sprintf("message %d.", messages-1)) })
	say("the last")
	await("the message after them", func() bool { return strings.Contains(out.String(), "the last") })
	at := 0
	for n := range messages {
		body := fmt.Sprintf("message %d.", n)
		if strings.Count(out.String(), body) != 1 {
			t.Fatalf("%q is shown %d times", body, strings.Count(out.String(), body))
		}
		next := strings.Index(out.String(), body)
		if next < at {
			t.Fatalf("%q is shown before an earlier message", body)
		}
		at = next
	}
	end()
}

// A user opens a conversation that has more messages than one page of the history. The terminal shows the newest ones.
func TestTalk_BeginsWithTheNewestMessages(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	say := aliceToBob(t, c)
	const messages = 60
	for n := range messages {
		say(fmt.Sprintf("message %d.", n))
	}
	out := &screen{}
	end := openTerminal(t, c, out)
	newest := fmt.Sprintf("message %d.", messages-1)
	meshtest.Eventually(t, "the newest message is shown", func() bool { return strings.Contains(out.String(), newest) })
	if strings.Contains(out.String(), "message 0.") {
		t.Errorf("the oldest message is shown:\n%s", out.String())
	}
	end()
}

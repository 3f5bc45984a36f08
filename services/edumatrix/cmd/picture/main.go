// Command picture records two terminals in which users chat, and writes them as an animated SVG for the README. It runs
// the real program: a mesh with embedded stores, and two terminal clients.
//
//	go run ./services/edumatrix/cmd/picture -edumatrix bin/edumatrix -out docs/talk.svg
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	program := flag.String("edumatrix", "bin/edumatrix", "the program to record")
	out := flag.String("out", "docs/talk.svg", "where to write the picture")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := record(ctx, *program, *out); err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

// line is a line of a terminal with the time at which it appeared.
type line struct {
	at    time.Duration
	text  string
	typed bool // typed by the user, not printed by the program
}

// terminal is one client with everything that its terminal shows.
type terminal struct {
	title string

	mu    sync.Mutex
	begun time.Time
	lines []line
	stdin io.WriteCloser
}

func (t *terminal) show(text string, typed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line{time.Since(t.begun), text, typed})
}

// types enters a line as if a user typed it.
func (t *terminal) types(text string) error {
	t.show(text, true)
	_, err := fmt.Fprintln(t.stdin, text)
	return err
}

// shows waits until at least the given number of lines of the terminal contain a text.
func (t *terminal) shows(ctx context.Context, text string, times int) error {
	for {
		t.mu.Lock()
		n := 0
		for _, l := range t.lines {
			if strings.Contains(l.text, text) {
				n++
			}
		}
		t.mu.Unlock()
		if n >= times {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the terminal of %s does not show %q: %w", t.title, text, ctx.Err())
		}
	}
}

// start runs a client in the terminal.
func (t *terminal) start(ctx context.Context, program string, env []string, arguments ...string) error {
	t.show("$ edumatrix "+strings.Join(arguments, " "), true)
	c := exec.CommandContext(ctx, program, arguments...)
	c.Env = env
	var err error
	if t.stdin, err = c.StdinPipe(); err != nil {
		return err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			t.show(lines.Text(), false)
		}
		_ = c.Wait()
	}()
	return nil
}

// pause is the time before each line that a user types, except for the first line.
const pause = 1300 * time.Millisecond

func record(ctx context.Context, program, out string) error {
	data, err := os.MkdirTemp("", "edumatrix-picture-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(data) }()
	if err := os.Chmod(data, 0o755); err != nil { // PostgreSQL may run as another user, who needs access
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	metrics, err := freePort()
	if err != nil {
		return err
	}
	env := append(os.Environ(), "DATA_DIR="+data, "PORT="+strconv.Itoa(port), "METRICS_PORT="+strconv.Itoa(metrics))
	// Each service gets a free port, because another mesh may be running on this machine.
	for _, service := range []string{"PRESENCE", "CHAT", "FEED", "NOTIFICATION"} {
		inner, err := freePort()
		if err != nil {
			return err
		}
		env = append(env, fmt.Sprintf("%s_URL=http://127.0.0.1:%d", service, inner))
	}
	mesh := exec.CommandContext(ctx, program, "up")
	mesh.Env, mesh.Stderr = env, os.Stderr
	mesh.Cancel, mesh.WaitDelay = func() error { return mesh.Process.Signal(os.Interrupt) }, 20*time.Second
	if err := mesh.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	defer func() {
		_ = mesh.Process.Signal(os.Interrupt)
		_ = mesh.Wait()
	}()
	if err := ready(ctx, port); err != nil {
		return err
	}
	begun := time.Now()
	alice, bob := &terminal{title: "alice", begun: begun}, &terminal{title: "bob", begun: begun}
	if err := talk(ctx, program, env, alice, bob); err != nil {
		return err
	}
	return os.WriteFile(out, draw(alice, bob), 0o644)
}

// talk runs the clients of two users who send messages to each other.
func talk(ctx context.Context, program string, env []string, alice, bob *terminal) error {
	if err := alice.start(ctx, program, env, "chat", "--user", "alice", "--to", "bob"); err != nil {
		return err
	}
	if err := alice.shows(ctx, "conversation ", 1); err != nil {
		return err
	}
	time.Sleep(pause)
	if err := alice.types("Did you finish the lab report?"); err != nil {
		return err
	}
	time.Sleep(pause)
	if err := bob.start(ctx, program, env, "chat", "--user", "bob", "--to", "alice"); err != nil {
		return err
	}
	if err := bob.shows(ctx, "Did you finish", 1); err != nil {
		return err
	}
	said := []struct {
		who  *terminal
		text string
	}{
		{bob, "Almost, I need the results of part two"},
		{alice, "They are in the group's files"},
		{bob, "Found them. See you at six"},
		{alice, "See you!"},
	}
	for _, s := range said {
		time.Sleep(pause)
		if err := s.who.types(s.text); err != nil {
			return err
		}
		for _, t := range []*terminal{alice, bob} {
			want := 1
			if t == s.who {
				want = 2 // the sender's terminal shows the typed line and the message
			}
			if err := t.shows(ctx, s.text, want); err != nil {
				return err
			}
		}
	}
	return errors.Join(alice.stdin.Close(), bob.stdin.Close())
}

func ready(ctx context.Context, port int) error {
	for {
		r, err := http.Get("http://127.0.0.1:" + strconv.Itoa(port) + "/readyz")
		if err == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the mesh is not ready: %w", ctx.Err())
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

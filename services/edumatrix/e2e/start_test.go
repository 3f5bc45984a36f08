//go:build integration

package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// run runs a program until it ends, and returns its exit status and its output.
func run(t *testing.T, name string, args []string, env ...string) (int, string) {
	t.Helper()
	p := binaries.Process(name, args, env)
	p.Start(t)
	return p.Wait(t), p.Output()
}

func TestStart_TwoOnOneDataDirectory(t *testing.T) {
	t.Parallel()
	m := embedded(t)
	var dir string
	for _, v := range m.processes[0].Env {
		if d, ok := strings.CutPrefix(v, "DATA_DIR="); ok {
			dir = d
		}
	}
	status, printed := run(t, "edumatrix", []string{"up"}, append(peers(t), "DATA_DIR="+dir,
		fmt.Sprintf("PORT=%d", meshtest.FreePort(t)))...)
	if status != 1 || !strings.Contains(printed, "data directory") || !strings.Contains(printed, "in use") {
		t.Fatalf("status %d: %s", status, printed)
	}
	// The mesh of the first process must still work.
	testTwoPeopleTalk(t, m)
}

// TestStart_PortInUse starts programs on a port that is in use. The error must name this port, and the variable that
// sets the port.
func TestStart_PortInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() }) // runs after the parallel subtests
	port := taken.Addr().(*net.TCPAddr).Port
	ofAll, kafka := fmt.Sprintf("PORT=%d", port), meshtest.Kafka(t)
	ofChat := fmt.Sprintf("CHAT_URL=http://127.0.0.1:%d", port)
	for _, test := range []struct {
		name, program string
		args, env     []string
		variable      string
	}{
		{"the gateway of up", "edumatrix", []string{"up"}, append(peers(t), ofAll), "PORT"},
		{"an inner service of up", "edumatrix", []string{"up"},
			append(peers(t), ofChat, fmt.Sprintf("PORT=%d", meshtest.FreePort(t))), "CHAT_URL"},
		{"a separate service", "chat", nil, []string{ofAll, "JWT_SECRET=" + secret,
			"DATABASE_URL=" + meshtest.Postgres(t), "KAFKA_BROKERS=" + strings.Join(kafka.Brokers, ","),
			"TOPIC_PREFIX=" + kafka.TopicPrefix}, "PORT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			status, printed := run(t, test.program, test.args, append(test.env, "DATA_DIR="+dataDir(t))...)
			if status != 1 || !strings.Contains(printed, fmt.Sprintf(":%d: ", port)) ||
				!strings.Contains(printed, "running? "+test.variable+" chooses") {
				t.Fatalf("status %d: %s", status, printed)
			}
		})
	}
}

func TestStart_NamesTheInvalidSetting(t *testing.T) {
	t.Parallel()
	nowhere := meshtest.FreePort(t)
	redis := meshtest.Redis(t)
	stores := []string{"JWT_SECRET=" + secret, "DATABASE_URL=" + meshtest.Postgres(t),
		"REDIS_URL=" + redisURL(redis.Host, redis.Port, redis.Password, redis.URL), "KAFKA_BROKERS=127.0.0.1:" + strconv.Itoa(nowhere)}
	for _, test := range []struct {
		name, program string
		args, env     []string
		wantText      []string
	}{
		{"no secret", "chat", nil, nil, []string{"JWT_SECRET", "JWKS_URL"}},
		{"no secret at the gateway", "gateway", nil, nil, []string{"JWT_SECRET"}},
		{"malformed port", "gateway", nil, []string{"PORT=many", "JWT_SECRET=" + secret}, []string{"PORT"}},
		{"malformed database", "chat", nil, []string{"DATABASE_URL=mysql://x", "JWT_SECRET=" + secret}, []string{"DATABASE_URL"}},
		{"malformed switch", "edumatrix", []string{"up"}, []string{"KAFKA_ENABLED=perhaps"}, []string{"KAFKA_ENABLED"}},
		{"up with the URL of a service on another machine", "edumatrix", []string{"up"}, []string{"CHAT_URL=http://chat:3003"},
			[]string{"CHAT_URL", "http://localhost:"}},
		{"up with the URL of a service without a port", "edumatrix", []string{"up"}, []string{"FEED_URL=http://localhost"},
			[]string{"FEED_URL", "http://localhost:"}},
		{"Kafka switched off", "chat", nil, []string{"KAFKA_ENABLED=false", "JWT_SECRET=" + secret}, []string{"KAFKA_ENABLED"}},
		{"Postgres unavailable", "chat", nil, []string{"JWT_SECRET=" + secret,
			fmt.Sprintf("DATABASE_URL=postgres://u:verysecret@127.0.0.1:%d/d", nowhere)}, []string{"Postgres", strconv.Itoa(nowhere)}},
		{"Redis unavailable", "presence", nil, []string{"JWT_SECRET=" + secret,
			fmt.Sprintf("REDIS_URL=redis://:verysecret@127.0.0.1:%d/0", nowhere)}, []string{"Redis", strconv.Itoa(nowhere)}},
		{"Kafka unavailable", "chat", nil, stores, []string{"Kafka", strconv.Itoa(nowhere)}},
		{"subcommand", "edumatrix", []string{"upp"}, nil, []string{"upp", "usage"}},
		{"token without a user", "edumatrix", []string{"token"}, nil, []string{"--user"}},
		{"chat without a mesh", "edumatrix", []string{"chat", "--user", "a", "--to", "b"}, nil, []string{"edumatrix up"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			status, printed := run(t, test.program, test.args, append([]string{"DATA_DIR=" + dataDir(t)}, test.env...)...)
			if status == 0 {
				t.Errorf("the program did not fail: %s", printed)
			}
			for _, want := range test.wantText {
				if !strings.Contains(printed, want) {
					t.Errorf("the output does not contain %q: %s", want, printed)
				}
			}
			for _, never := range []string{"verysecret", secret, "panic", "goroutine"} {
				if strings.Contains(printed, never) {
					t.Errorf("the output contains %q: %s", never, printed)
				}
			}
		})
	}
}

// TestTerminal_TwoPeopleTalk runs the client in two terminals, as the README shows, and then the subcommands verify,
// health and token.
func TestTerminal_TwoPeopleTalk(t *testing.T) {
	t.Parallel()
	m := embedded(t)
	env := m.processes[0].Env
	alice, bob := startTerminal(t, env, "alice", "bob"), startTerminal(t, env, "bob", "alice")
	alice.until("type a line")
	bob.until("type a line")
	alice.type_("hello bob")
	bob.until("alice: hello bob")
	bob.type_("hello \x1b[31malice")
	alice.until("bob: hello ·[31malice") // control characters are replaced, to protect the terminals of other users
	status, printed := run(t, "edumatrix", []string{"verify"}, env...)
	if status != 0 || !strings.Contains(printed, "chat-events") && !strings.Contains(strings.ToLower(printed), "topics") {
		t.Errorf("verify: status %d\n%s", status, printed)
	}
	status, printed = run(t, "edumatrix", []string{"health"}, env...)
	if status != 0 || !strings.Contains(printed, `"status":"healthy"`) {
		t.Errorf("health: status %d\n%s", status, printed)
	}
	status, printed = run(t, "edumatrix", []string{"token", "--user", "carol"}, env...)
	if status != 0 || strings.Count(printed, ".") != 2 {
		t.Errorf("token: status %d\n%s", status, printed)
	}
	status, printed = run(t, "edumatrix", []string{"verify"}, "DATA_DIR="+dataDir(t),
		fmt.Sprintf("DATABASE_URL=postgres://u:p@127.0.0.1:%d/d", meshtest.FreePort(t)),
		fmt.Sprintf("REDIS_URL=redis://127.0.0.1:%d/0", meshtest.FreePort(t)),
		fmt.Sprintf("KAFKA_BROKERS=127.0.0.1:%d", meshtest.FreePort(t)))
	if status == 0 || !strings.Contains(printed, "failed") {
		t.Errorf("verify of nothing: status %d\n%s", status, printed)
	}
}

type terminal struct {
	t      *testing.T
	in     interface{ Write([]byte) (int, error) }
	output *meshrun.Printed
}

func startTerminal(t *testing.T, env []string, user, to string) *terminal {
	t.Helper()
	cmd := exec.Command(string(binaries)+"/edumatrix", "chat", "--user", user, "--to", to)
	cmd.Env = env
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &meshrun.Printed{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // ends the terminal, like Ctrl-D
		if err := cmd.Wait(); err != nil {
			t.Errorf("the terminal of %s: %v\n%s", user, err, out)
		}
	})
	return &terminal{t, in, out}
}

func (s *terminal) type_(line string) { _, _ = s.in.Write([]byte(line + "\n")) }

func (s *terminal) until(text string) {
	s.t.Helper()
	eventually(s.t, "the terminal shows "+text, func() bool { return strings.Contains(s.output.String(), text) })
}

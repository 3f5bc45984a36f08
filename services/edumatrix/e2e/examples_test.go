//go:build integration

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dop251/goja"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

const examplesDir = "../../../docs/examples"

// TestExamples runs the examples and checks that they behave as docs/examples/README.md describes.
func TestExamples(t *testing.T) {
	t.Parallel()
	programs := t.TempDir() + "/"
	build := exec.Command("go", "build", "-o", programs, "./...")
	build.Dir = examplesDir
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	kafka, redis := meshtest.Kafka(t), meshtest.Redis(t)
	brokers, prefix := "KAFKA_BROKERS="+strings.Join(kafka.Brokers, ","), "TOPIC_PREFIX="+kafka.TopicPrefix
	m := separateOn(t, meshtest.Postgres(t), redisURL(redis.Host, redis.Port, redis.Password, redis.URL),
		strings.Join(kafka.Brokers, ","), prefix)
	run := func(t *testing.T, env []string, program string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		c := exec.CommandContext(ctx, programs+program, args...)
		c.Env = append(os.Environ(), env...)
		logged := &strings.Builder{}
		c.Stderr = logged
		out, err := c.Output()
		require.NoError(t, err, "%s%s", out, logged)
		return string(out)
	}

	t.Run("client", func(t *testing.T) {
		printed := run(t, []string{"GATEWAY_URL=" + m.socket(0), "TOKEN=" + mint(t, "ann", time.Hour)}, "client", "ben", "hello")
		require.Regexp(t, `chat\.conversation_started 1 by ann: .*\nchat\.message_sent 2 by ann: .*"body":"hello"`, printed)
	})

	t.Run("service", func(t *testing.T) {
		service := meshrun.Binaries(programs).Process("service", nil, []string{brokers, prefix})
		service.Start(t)
		defer service.Stop(t)
		run(t, []string{"GATEWAY_URL=" + m.socket(1), "TOKEN=" + mint(t, "cleo", time.Hour)}, "client", "ben", "grüße")
		require.Eventually(t, func() bool {
			return strings.Contains(service.Output(), "cleo wrote 5 characters at version 2 of conversation:")
		}, time.Minute, 10*time.Millisecond)
	})

	t.Run("log", func(t *testing.T) {
		database := "DATABASE_URL=" + meshtest.Postgres(t)
		want := "position 1: feed.post_created, version 1 of post:0, by alice\n" +
			"position 2: feed.post_created, version 1 of post:1, by alice\n"
		for range 2 { // the second run sends the same commands again, which must not add events
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				e := exec.CommandContext(t.Context(), programs+"log")
				e.Env = append(os.Environ(), database)
				out, err := e.Output()
				assert.NoError(c, err)
				assert.Equal(c, want, string(out))
			}, patience, 10*time.Millisecond, "on a busy machine, a connection may take longer than the program waits")
		}
	})

	t.Run("page", func(t *testing.T) {
		p := openPage(t, filepath.Join(examplesDir, "page", "index.html"))
		p.submit("sign-in", map[string]string{"url": m.socket(0), "token": mint(t, "dan", time.Hour)})
		p.await("connected", func() bool { return p.evaluate("connection.resumeToken !== undefined") })
		p.submit("say", map[string]string{"to": "eli", "text": "hello"})
		first := regexp.MustCompile(`chat\.message_sent by dan: .*"body":"hello"`)
		p.await("the message", func() bool { return first.MatchString(p.text("log")) })
		p.submit("say", map[string]string{"to": "dan", "text": "to myself"})
		p.await("a refusal", func() bool { return strings.Contains(p.text("log"), "yourself") })

		// Drop the connection. After the page has reconnected, it must get the missed events once, and no event twice.
		p.do("connection.socket.drop()")
		eli := m.connect(t, "eli", 1)
		_, err := eli.Command(t.Context(), "chat.send_message", map[string]any{
			"conversation_id": p.value("[...connection.versions.keys()][0].slice('conversation:'.length)"), "body": "are you there?"})
		require.NoError(t, err)
		p.await("the missed event", func() bool { return strings.Contains(p.text("log"), "are you there?") })
		require.Len(t, first.FindAllString(p.text("log"), -1), 1)
	})
}

// page runs the script of an HTML page. It implements the parts of a browser that the script needs.
type page struct {
	t       *testing.T
	vm      *goja.Runtime
	tasks   chan func() // tasks run one after another on one goroutine, as in a browser
	closed  chan struct{}
	element map[string]*goja.Object
}

func openPage(t *testing.T, file string) *page {
	t.Helper()
	html, err := os.ReadFile(file)
	require.NoError(t, err)
	_, script, _ := strings.Cut(string(html), "<script>")
	script, _, found := strings.Cut(script, "</script>")
	require.True(t, found, "the page must have a script")
	p := &page{t: t, vm: goja.New(), tasks: make(chan func()), closed: make(chan struct{}),
		element: map[string]*goja.Object{}}
	p.vm.SetFieldNameMapper(goja.UncapFieldNameMapper())
	ended := make(chan struct{})
	t.Cleanup(func() { close(p.closed); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case task := <-p.tasks:
				task()
			case <-p.closed:
				return
			}
		}
	}()
	for _, id := range regexp.MustCompile(`id="([^"]+)"`).FindAllStringSubmatch(string(html), -1) {
		p.element[id[1]] = p.vm.NewObject()
		require.NoError(t, p.element[id[1]].Set("textContent", ""))
	}
	for name, value := range map[string]any{
		"document":   map[string]any{"getElementById": func(id string) *goja.Object { return p.element[id] }},
		"crypto":     map[string]any{"randomUUID": uuid.NewString},
		"WebSocket":  p.webSocket,
		"setTimeout": func(f func(), ms int) { time.AfterFunc(time.Duration(ms)*time.Millisecond, func() { p.later(f) }) },
	} {
		require.NoError(t, p.vm.Set(name, value))
	}
	p.do(script)
	return p
}

// later runs a task on the page's goroutine, unless the page was closed.
func (p *page) later(task func()) {
	select {
	case p.tasks <- task:
	case <-p.closed:
	}
}

// webSocket is the constructor WebSocket of JavaScript. Its sockets also have the method drop, with which a test breaks
// the connection.
func (p *page) webSocket(call goja.ConstructorCall) *goja.Object {
	socket := call.This
	var protocols []string
	if err := p.vm.ExportTo(call.Argument(1), &protocols); err != nil {
		panic(p.vm.ToValue(err.Error()))
	}
	var conn *websocket.Conn
	event := func(name string, fields map[string]any) {
		p.later(func() {
			if handler, ok := goja.AssertFunction(socket.Get(name)); ok {
				if _, err := handler(socket, p.vm.ToValue(fields)); err != nil {
					p.t.Errorf("handler %s of the page: %v", name, err)
				}
			}
		})
	}
	_ = socket.Set("send", func(text string) { _ = conn.WriteMessage(websocket.TextMessage, []byte(text)) })
	_ = socket.Set("drop", func() { _ = conn.Close() })
	url := call.Argument(0).String()
	go func() {
		c, response, err := (&websocket.Dialer{Subprotocols: protocols}).DialContext(p.t.Context(), url, nil)
		if err != nil {
			event("onclose", map[string]any{"code": 1006})
			return
		}
		_ = response.Body.Close()
		conn = c
		event("onopen", nil)
		for {
			_, text, err := c.ReadMessage()
			if err != nil {
				code := 1006
				if closed := new(websocket.CloseError); errors.As(err, &closed) {
					code = closed.Code
				}
				event("onclose", map[string]any{"code": code})
				return
			}
			event("onmessage", map[string]any{"data": string(text)})
		}
	}()
	return nil
}

// run runs a script on the page's goroutine.
func (p *page) run(script string) (v goja.Value) {
	p.t.Helper()
	done := make(chan error)
	p.tasks <- func() {
		var err error
		v, err = p.vm.RunString(script)
		done <- err
	}
	require.NoError(p.t, <-done)
	return v
}

func (p *page) do(script string)            { p.t.Helper(); p.run(script) }
func (p *page) evaluate(script string) bool { p.t.Helper(); return p.run(script).ToBoolean() }
func (p *page) value(script string) string  { p.t.Helper(); return p.run(script).String() }

func (p *page) text(id string) string {
	p.t.Helper()
	return p.value("document.getElementById('" + id + "').textContent")
}

// submit calls the page's onsubmit handler of a form, with the given values of the form's fields.
func (p *page) submit(form string, fields map[string]string) {
	p.t.Helper()
	elements := map[string]any{}
	for name, value := range fields {
		elements[name] = map[string]any{"value": value}
	}
	given, err := json.Marshal(elements)
	require.NoError(p.t, err)
	p.do("void document.getElementById('" + form + "').onsubmit({preventDefault() {}, target: {elements: " + string(given) + "}})")
}

func (p *page) await(what string, is func() bool) {
	p.t.Helper()
	for begun := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			p.t.Fatalf("the page did not show %s; it shows %q", what, p.text("log"))
		}
	}
}

package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/access"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/httpapi"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/query"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// tokens is a verifier that treats every token as the id of its user, except the token "unknown", which cannot be
// checked.
type tokens struct{}

func (tokens) Verify(_ context.Context, token string) (auth.User, error) {
	if token == "unknown" {
		return auth.User{}, refusal.New(refusal.Unavailable, "the keys cannot be fetched")
	}
	return auth.User{ID: token}, nil
}

// api is the HTTP API with one owner, whose decisions the test defines.
type api struct {
	*httpapi.Server
	url    string
	chat   *fake.Owner
	decide func(c envelope.Command) envelope.Outcome
}

func (a *api) Publish(_ string, messages ...*message.Message) error {
	for _, m := range messages {
		c, err := envelope.ReadCommand(m)
		if err != nil {
			return err
		}
		a.Intake.Resolve(a.decide(c))
	}
	return nil
}

func (a *api) Close() error { return nil }

func commit(c envelope.Command) envelope.Outcome {
	return envelope.Outcome{Actor: c.Actor, CommandID: c.ID, Source: "chat", Type: c.Type, Stream: c.Stream,
		Kind: envelope.Committed, Version: 7}
}

func begin(t *testing.T, change ...func(*api)) *api {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	a := &api{chat: fake.NewOwner(c, "chat"), decide: commit}
	owner := httptest.NewServer(a.chat.Handler())
	t.Cleanup(owner.Close)
	tracer := noop.Tracer{}
	peers := map[string]string{}
	for _, name := range c.Owners() {
		peers[name] = owner.URL
	}
	a.Server = &httpapi.Server{Catalog: c, Access: &access.Access{Verifier: tokens{}, Log: log}, Users: &quota.Users{},
		Hub:     hub.New(hub.Options{Catalog: c}),
		Queries: query.New(c, peers, rpc.NewClient(rpc.Credential("s"), tracer), tracer), Guard: guard.New(log, nil), Tracer: tracer, Log: log}
	for _, f := range change {
		f(a)
	}
	a.Intake = intake.New(intake.Options{Catalog: c, Publisher: a, Ready: func(string) bool { return true },
		Guard: a.Guard, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Intake.Run(ctx) })
	server := httptest.NewUnstartedServer(a.Server)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	a.url = server.URL
	t.Cleanup(func() { server.CloseClientConnections(); server.Close(); cancel(); running.Wait() })
	return a
}

const (
	send    = "chat.send_message"
	history = "chat.history"
	asked   = `{"conversation_id":"g"}`
)

func sendMessage(body string) string { return fmt.Sprintf(`{"conversation_id":"g","body":%q}`, body) }

// answer is the response to a request.
type answer struct {
	status int
	header http.Header
	text   string
	err    error
}

func (a answer) code() string {
	var body struct {
		Error   struct{ Code string }
		Outcome struct{ Error struct{ Code string } }
	}
	_ = json.Unmarshal([]byte(a.text), &body)
	return body.Error.Code + body.Outcome.Error.Code
}

func (a *api) post(name, user, body string, headers ...string) (got answer) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/api/"+name, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	r.Header.Set("Authorization", "Bearer "+user)
	for n := 0; n < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(text), err}
}

// A user has as many requests in flight as the limit allows. Further requests of this user must be refused, and
// requests of other users must not.
func TestServer_LimitsTheRequestsInFlightOfAUser(t *testing.T) {
	t.Parallel()
	a := begin(t, func(a *api) { a.Users.Limits.Requests, a.Queries.Users.Limits.Asked = 3, 3 })
	under, release := make(chan bool, 100), make(chan bool)
	a.chat.OnQuery(func(_ string, q fake.Question) (string, error) {
		if q.Actor == "eve" {
			under <- true
			select {
			case <-release:
			case <-t.Context().Done():
			}
		}
		return `{}`, nil
	})
	var asking sync.WaitGroup
	answers := make(chan answer, 3)
	for range 3 {
		asking.Go(func() { answers <- a.post(history, "eve", asked) })
	}
	for range 3 {
		<-under
	}
	refused := a.post(history, "eve", asked)
	require.Equal(t, http.StatusTooManyRequests, refused.status, refused)
	require.Equal(t, refusal.TooManyWaiting, refused.code())
	require.NotEmpty(t, refused.header.Get("Retry-After"))
	other := a.post(history, "bob", asked)
	require.Equal(t, http.StatusOK, other.status, other)
	close(release)
	for range 3 {
		got := <-answers
		require.Equal(t, http.StatusOK, got.status, got)
	}
	asking.Wait()
	require.Equal(t, http.StatusOK, a.post(history, "eve", asked).status, "answered requests must not count")
}

// A refusal that may be temporary must contain, in the header Retry-After, how long to wait before another attempt.
func TestServer_ReturnsWhenToTryAgain(t *testing.T) {
	t.Parallel()
	a := begin(t, func(a *api) { a.Users.Limits.FrameBurst, a.Users.Limits.Frames = 1, 1 })
	a.chat.OnQuery(func(string, fake.Question) (string, error) { return `{}`, nil })
	for name, ask := range map[string]func() answer{
		"the keys of tokens are unavailable": func() answer { return a.post(history, "unknown", asked) },
		"an owner is unavailable":            func() answer { a.chat.SetAway(true); return a.post(history, "bob", asked) },
	} {
		got := ask()
		require.Equal(t, http.StatusServiceUnavailable, got.status, "%s: %v", name, got)
		require.Equal(t, refusal.Unavailable, got.code(), name)
		require.NotEmpty(t, got.header.Get("Retry-After"), name)
	}
	var got answer
	for range 20 { // at most one frame per second is allowed, so one of these requests is refused
		if got = a.post(history, "eve", asked+strings.Repeat(" ", 16<<10)); got.status == http.StatusTooManyRequests {
			break
		}
	}
	require.Equal(t, http.StatusTooManyRequests, got.status)
	require.NotEmpty(t, got.header.Get("Retry-After"))
}

// A client sends two different commands with the same command id. The second command must be refused, whether the first
// one has been decided or is still in flight.
func TestServer_AnIDOfAnotherCommandIsAConflict(t *testing.T) {
	t.Parallel()
	t.Run("decided", func(t *testing.T) {
		t.Parallel()
		first := map[string]string{}
		a := begin(t, func(a *api) {
			a.decide = func(c envelope.Command) envelope.Outcome { // as an owner does
				r := commit(c)
				if body, known := first[c.ID]; known && body != string(c.Body) {
					r.Kind, r.Code, r.Text = envelope.Refused, refusal.IDReused, "the id stands for another command"
				}
				first[c.ID] = string(c.Body)
				return r
			}
		})
		require.Equal(t, http.StatusOK, a.post(send, "alice", sendMessage("first"), "Command-Id", "1").status)
		got := a.post(send, "alice", sendMessage("second"), "Command-Id", "1")
		require.Equal(t, http.StatusConflict, got.status, got)
		require.Equal(t, refusal.IDReused, got.code())
	})
	t.Run("in flight", func(t *testing.T) {
		t.Parallel()
		taken, release := make(chan bool, 8), make(chan bool)
		unblock := sync.OnceFunc(func() { close(release) })
		defer unblock()
		a := begin(t, func(a *api) {
			a.decide = func(c envelope.Command) envelope.Outcome {
				taken <- true
				<-release
				return commit(c)
			}
		})
		first := make(chan answer, 1)
		go func() { first <- a.post(send, "alice", sendMessage("first"), "Command-Id", "1") }()
		<-taken
		got := a.post(send, "alice", sendMessage("second"), "Command-Id", "1")
		require.Equal(t, http.StatusConflict, got.status, got)
		require.Equal(t, refusal.IDReused, got.code())
		unblock()
		require.Equal(t, http.StatusOK, (<-first).status)
	})
}

// A client sends requests with a trace context of its own, and with unknown command names. The names of trace spans
// must come from declarations, not from requests. The mesh must begin a trace of its own, and only link it to the
// client's trace.
func TestServer_NamesSpansByDeclarationsAndLinksForeignTraces(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	a := begin(t, func(a *api) { a.Tracer = provider.Tracer("test") })
	const foreign = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceparent := []string{"Traceparent", "00-" + foreign + "-00f067aa0ba902b7-01"}
	require.Equal(t, http.StatusOK, a.post(send, "alice", sendMessage("hi"), traceparent...).status)
	a.chat.OnQuery(func(string, fake.Question) (string, error) { return `{}`, nil })
	const procedure = "edumatrix.chat.v1.ChatService/History"
	require.Equal(t, http.StatusOK, a.post(procedure, "alice", asked, "Content-Type", "application/json").status)
	require.Equal(t, http.StatusNotFound, a.post("chat."+strings.Repeat("x", 1000), "alice", `{}`, traceparent...).status)
	var received []tracetest.SpanStub
	require.Eventually(t, func() bool {
		received = received[:0]
		for _, s := range spans.GetSpans() {
			require.NotContains(t, s.Name, "xxx")
			if s.SpanKind == trace.SpanKindServer {
				received = append(received, s)
			}
		}
		return len(received) == 2
	}, 10*time.Second, time.Millisecond)
	require.Equal(t, "receive chat.history", received[1].Name, "the span must not be named after the path")
	span := received[0]
	require.Equal(t, "receive chat.send_message", span.Name)
	require.False(t, span.Parent.IsValid(), "a foreign trace is not a parent")
	require.NotEqual(t, foreign, span.SpanContext.TraceID().String())
	require.Len(t, span.Links, 1)
	require.Equal(t, foreign, span.Links[0].SpanContext.TraceID().String())
}

// panicking is a tracer that panics when a trace span of the given name begins.
type panicking struct {
	noop.Tracer
	name string
}

func (p panicking) Start(ctx context.Context, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	if name == p.name {
		panic("injected into " + name)
	}
	return p.Tracer.Start(ctx, name, o...)
}

func TestServer_APanicCostsOneRequest(t *testing.T) {
	t.Parallel()
	a := begin(t, func(a *api) {
		a.Tracer = panicking{name: "receive " + send}
		a.Users.Limits.Requests = 1
	})
	a.chat.OnQuery(func(string, fake.Question) (string, error) { return `{}`, nil })
	for range 3 { // a request that has panicked no longer counts against the limit of one
		got := a.post(send, "alice", sendMessage("hi"))
		require.Equal(t, http.StatusInternalServerError, got.status, got)
		require.Equal(t, refusal.Internal, got.code())
	}
	require.Equal(t, http.StatusOK, a.post(history, "alice", asked).status)
}

// breaking is a response writer that panics when an answer exceeds the given number of bytes.
type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		panic("injected into an answer")
	}
	return b.ResponseWriter.Write(p)
}

// A panic happens in the middle of an answer. The connection must be closed, so that the client does not take the part
// that it has received for the whole answer.
func TestServer_APanicInTheMiddleOfAnAnswerCutsIt(t *testing.T) {
	t.Parallel()
	a := begin(t)
	a.chat.OnQuery(func(string, fake.Question) (string, error) {
		return fmt.Sprintf(`{"messages":[{"body":%q}]}`, strings.Repeat("x", 100_000)), nil
	})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.ServeHTTP(&breaking{w, 40_000}, r)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	t.Cleanup(server.Close)
	a.url = server.URL
	got := a.post(history, "alice", asked)
	require.Error(t, got.err)
}

// recorder records the sizes of the parts in which an answer is written.
type recorder struct {
	*httptest.ResponseRecorder
	armed bool
	parts []int
	late  int // parts before which no new write deadline was set
}

func (r *recorder) SetWriteDeadline(time.Time) error { r.armed = true; return nil }

func (r *recorder) Write(b []byte) (int, error) {
	r.parts = append(r.parts, len(b))
	if !r.armed {
		r.late++
	}
	r.armed = false
	return r.ResponseRecorder.Write(b)
}

// A client with a slow link reads a long answer. Each part of the answer must have a write deadline of its own, so that
// the whole answer may take as long as the link needs.
func TestServer_EachPartOfAnAnswerHasADeadlineOfItsOwn(t *testing.T) {
	t.Parallel()
	a := begin(t)
	long := strings.Repeat("x", 300_000)
	a.chat.OnQuery(func(string, fake.Question) (string, error) {
		return fmt.Sprintf(`{"messages":[{"body":%q}]}`, long), nil
	})
	request := httptest.NewRequest(http.MethodPost, "/api/"+history, strings.NewReader(asked))
	request.Header.Set("Authorization", "Bearer alice")
	w := &recorder{ResponseRecorder: httptest.NewRecorder()}
	a.ServeHTTP(w, request)
	require.Contains(t, w.Body.String(), long)
	require.Zero(t, w.late)
	for _, n := range w.parts {
		require.LessOrEqual(t, n, 16<<10)
	}
}

// A client does not read the answer to its request. The request must end, and the user may then send other requests.
func TestServer_EndsTheRequestOfAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	a := begin(t, func(a *api) {
		a.WriteWait = 100 * time.Millisecond
		a.Users.Limits.Requests = 1
	})
	page := fmt.Sprintf(`{"messages":[{"body":%q}]}`, strings.Repeat("x", 24<<20)) // more than the sockets' buffers hold
	a.chat.OnQuery(func(_ string, q fake.Question) (string, error) {
		if strings.Contains(q.Data, "long") {
			return page, nil
		}
		return `{}`, nil
	})
	socket, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	const body = `{"conversation_id":"long"}`
	_, err = fmt.Fprintf(socket, "POST /api/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer eve\r\nContent-Length: %d\r\n\r\n%s",
		history, len(body), body)
	require.NoError(t, err)
	first := make([]byte, 1) // once it is read, the answer has begun
	_, err = io.ReadFull(socket, first)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return a.post(history, "eve", asked).status == http.StatusOK }, 20*time.Second,
		10*time.Millisecond, "eve's request never ends")
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(10*time.Second)))
	rest, _ := io.ReadAll(socket)
	require.Less(t, len(rest), len(page))
	require.False(t, bytes.HasSuffix(rest, []byte("0\r\n\r\n")), "the answer looks complete")
}

// A user sends many queries at once. The owner must get only a few of them at a time, and must meanwhile answer the
// queries of other users.
func TestQueries_OfOneUserTakeTurns(t *testing.T) {
	t.Parallel()
	a := begin(t)
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	var mu sync.Mutex
	under, most := 0, 0
	a.chat.OnQuery(func(_ string, q fake.Question) (string, error) {
		if q.Actor == "bob" {
			return `{}`, nil
		}
		mu.Lock()
		under++
		most = max(most, under)
		mu.Unlock()
		arrived <- struct{}{}
		select {
		case <-release:
		case <-t.Context().Done():
		}
		mu.Lock()
		under--
		mu.Unlock()
		return `{}`, nil
	})
	answers := make(chan answer, 100)
	for range 20 {
		go func() { answers <- a.post(history, "eve", asked) }()
	}
	for range 2 {
		<-arrived
	}
	for range 20 {
		require.Equal(t, http.StatusOK, a.post(history, "bob", asked).status)
	}
	for range 20 {
		release <- struct{}{}
		got := <-answers
		require.Equal(t, http.StatusOK, got.status, got.text)
	}
	require.Equal(t, 2, most)
}

// unread is the response writer of a client that does not read until the channel read is closed.
type unread struct {
	*httptest.ResponseRecorder
	writes chan struct{}
	read   chan struct{}
}

func (w *unread) Write(b []byte) (int, error) {
	select {
	case w.writes <- struct{}{}:
	default:
	}
	<-w.read
	return w.ResponseRecorder.Write(b)
}

// A user does not read the answers to requests. The bytes of these answers must be limited, together with the bytes of
// the frames that wait for the user's connections.
func TestAnswers_UnreadBytesOfOneUserAreLimited(t *testing.T) {
	t.Parallel()
	const bound = 100_000
	a := begin(t, func(a *api) {
		a.Hub = hub.New(hub.Options{Catalog: a.Catalog, Limits: hub.Limits{UserBytes: bound}})
	})
	a.chat.OnQuery(func(string, fake.Question) (string, error) {
		return fmt.Sprintf(`{"messages":[{"body":%q}]}`, strings.Repeat("x", bound*6/10)), nil
	})
	first := &unread{httptest.NewRecorder(), make(chan struct{}, 1), make(chan struct{})}
	r := httptest.NewRequest(http.MethodPost, "/api/"+history, strings.NewReader(asked))
	r.Header.Set("Authorization", "Bearer eve")
	var serving sync.WaitGroup
	serving.Go(func() { a.ServeHTTP(first, r) })
	<-first.writes
	second := a.post(history, "eve", asked)
	require.Equal(t, http.StatusTooManyRequests, second.status)
	require.Equal(t, refusal.TooManyWaiting, second.code())
	require.Equal(t, http.StatusOK, a.post(history, "bob", asked).status)
	conn, err := a.Hub.Add("eve", frame.JSON)
	require.NoError(t, err)
	require.False(t, conn.Reply(make([]byte, bound*6/10), nil), "the connections of the user count, too")
	close(first.read)
	serving.Wait()
	require.Equal(t, http.StatusOK, first.Code)
	require.Equal(t, http.StatusOK, a.post(history, "eve", asked).status)
	require.True(t, conn.Reply(make([]byte, bound*6/10), nil))
}

package gateway

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
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

const secret = "a secret of this test, long enough"

// mesh is a broker, a Redis server and fake owners, in which a test starts one or more gateways. The test defines how
// chat's commands are decided.
type mesh struct {
	t         testing.TB
	broker    *embedded.Kafka
	catalog   *catalog.Catalog
	kafka     backend.Kafka
	publisher *bus.Publisher
	owners    map[string]*fake.Owner
	config    config.Config
	stores    *backend.Stores
	redis     *embedded.Redis
	exporter  sdktrace.SpanExporter

	mu     sync.Mutex
	decide func(c envelope.Command) // called with each command for chat; nil if commands are not decided
	held   bool                     // whether events are appended but not published
	kept   []envelope.Event
}

func begin(t testing.TB) *mesh {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	c, err := catalog.Load()
	require.NoError(t, err)
	broker, err := embedded.StartKafka(embedded.KafkaOptions{Log: log})
	require.NoError(t, err)
	t.Cleanup(broker.Stop)
	store, err := embedded.StartRedis(embedded.RedisOptions{})
	require.NoError(t, err)
	t.Cleanup(store.Stop)
	m := &mesh{t: t, broker: broker, catalog: c, owners: map[string]*fake.Owner{},
		kafka: backend.Kafka{Brokers: broker.Brokers(), ClientID: "test"}}
	_, err = m.kafka.EnsureTopics(t.Context(), c.Topics(""))
	require.NoError(t, err)
	m.publisher, err = bus.NewPublisher(m.kafka, log)
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.publisher.Close() })
	redis, err := backend.Redis{URL: store.URL()}.Open(t.Context())
	require.NoError(t, err)
	m.redis = store
	m.stores = &backend.Stores{Redis: redis, Kafka: m.kafka}
	t.Cleanup(func() { _ = m.stores.Close() })
	m.config = config.Config{Service: "gateway", JWTSecret: secret, JWTRoleClaim: "role", ServiceSecret: "s", Kafka: m.kafka,
		Peers: map[string]string{}, AllowedOrigins: []string{"https://school.example"}}
	for _, name := range c.Owners() {
		m.owners[name] = fake.NewOwner(c, name)
		server := httptest.NewServer(m.owners[name].Handler())
		t.Cleanup(server.Close)
		m.config.Peers[name] = server.URL
	}
	m.positions()
	m.decideAll(log)
	return m
}

// positions publishes each owner's position to all partitions of its topics, as relays do when they start.
func (m *mesh) positions() {
	for name, owner := range m.owners {
		for _, topic := range m.catalog.LoggedTopics(name) {
			for n := range topic.Partitions {
				position := owner.Position(topic.Name, n).Message()
				position.Metadata.Set(bus.MetadataPartition, strconv.Itoa(int(n)))
				require.NoError(m.t, m.publisher.Publish(topic.Name, position))
			}
		}
	}
}

// decideAll passes each command for chat to the function m.decide, unless that is nil.
func (m *mesh) decideAll(log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	reader, err := bus.NewReader(m.kafka, bus.ReaderOptions{Log: log})
	require.NoError(m.t, err)
	commands, err := reader.Subscribe(ctx, catalog.CommandTopic("chat"))
	require.NoError(m.t, err)
	reading.Go(func() {
		for msg := range commands {
			c, err := envelope.ReadCommand(msg)
			m.mu.Lock()
			decide := m.decide
			m.mu.Unlock()
			if err == nil && decide != nil {
				decide(c)
			}
			msg.Ack()
		}
	})
	m.t.Cleanup(func() { cancel(); _ = reader.Close(); reading.Wait() })
}

func (m *mesh) onCommand(decide func(c envelope.Command)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.decide = decide
}

// publish publishes an event. While m.held is true, publish only keeps the event, and m.release publishes it later.
func (m *mesh) publish(e envelope.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held {
		m.kept = append(m.kept, e)
		return
	}
	m.relay(e)
}

func (m *mesh) relay(e envelope.Event) {
	declared, _ := m.catalog.Event(e.Type)
	if err := m.publisher.Publish(declared.Topic, e.Message()); err != nil {
		m.t.Error(err)
	}
}

func (m *mesh) hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = true
}

func (m *mesh) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = false
	for _, e := range m.kept {
		m.relay(e)
	}
	m.kept = nil
}

// m.commits decides a command that sends a message: it appends the event of the message and publishes it.
func (m *mesh) commits(c envelope.Command) {
	declared, _ := m.catalog.Command(c.Type)
	body := declared.Type.New().Interface()
	if err := unmarshal(c.Body, body); err != nil {
		m.t.Error(err)
		return
	}
	text, _ := json.Marshal(field(body, "body"))
	conversation := strings.TrimPrefix(c.Stream, "conversation:")
	e := m.owners["chat"].Answer(c.Actor, c.ID, c.Type, "chat.message_sent",
		fmt.Sprintf(`{"conversation_id":%q,"message_id":%q,"body":%s}`, conversation, c.ID, text))
	e.TraceParent = c.TraceParent
	m.publish(e)
}

func (m *mesh) start(users string) {
	m.publish(m.owners["chat"].Append("alice", "chat.conversation_started",
		fmt.Sprintf(`{"conversation_id":"g","user_ids":%s}`, users)))
}

func (m *mesh) member(event, user string) {
	m.publish(m.owners["chat"].Append("alice", event, fmt.Sprintf(`{"conversation_id":"g","user_id":%q}`, user)))
}

func (m *mesh) messageSent(body string) {
	m.publish(m.owners["chat"].Append("alice", "chat.message_sent",
		fmt.Sprintf(`{"conversation_id":"g","message_id":%q,"body":%q}`, body, body)))
}

// metricsOf maps the address of a gateway to the address of its metrics.
var metricsOf sync.Map

// metrics returns the metrics of a gateway.
func metrics(t testing.TB, address string) string {
	t.Helper()
	at, _ := metricsOf.Load(address)
	r, err := http.Get(fmt.Sprintf("http://%s/metrics", at))
	require.NoError(t, err)
	defer func() { _ = r.Body.Close() }()
	require.Equal(t, http.StatusOK, r.StatusCode)
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(body)
}

// gateway starts a gateway and returns its address, and a function that stops it.
func (m *mesh) gateway(set settings) (address string, stop func()) {
	t := m.t
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	set.listener = listener
	set.metrics, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	metricsOf.Store(listener.Addr().String(), set.metrics.Addr().String())
	log := slog.New(slog.DiscardHandler)
	tele, err := telemetry.Start(t.Context(), telemetry.Options{Service: "gateway", Exporter: m.exporter})
	require.NoError(t, err)
	ready := make(chan struct{})
	env := process.Env{Config: m.config, Stores: m.stores, Catalog: m.catalog, Log: log, Telemetry: tele,
		Ready: func() { close(ready) }}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, env, set) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Error("the gateway does not end")
		}
		require.NoError(t, tele.Stop(context.Background()))
	})
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal("the gateway has ended: ", err)
	case <-time.After(20 * time.Second):
		t.Fatal("the gateway is not ready")
	}
	return listener.Addr().String(), stop
}

func token(t testing.TB, user, role string) string {
	t.Helper()
	token, err := auth.Mint(secret, auth.User{ID: user, Role: role}, time.Hour)
	require.NoError(t, err)
	return token
}

// inbox is a client connection that records the events and the late outcomes that it gets.
type inbox struct {
	*client.Client
	mu       sync.Mutex
	events   []string
	outcomes []client.Outcome
}

func connect(t testing.TB, address, user string, change ...func(*client.Options)) *inbox {
	t.Helper()
	in := &inbox{}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	o := client.Options{URL: "ws://" + address + "/ws", Token: token(t, user, ""),
		OnEvent: func(e client.Event) {
			var data struct {
				Body string
				User string `json:"user_id"`
			}
			_ = json.Unmarshal(e.Data, &data)
			what := strings.TrimPrefix(e.Type, "chat.")
			if data.Body != "" {
				what = data.Body
			} else if data.User != "" {
				what += " " + data.User
			}
			in.mu.Lock()
			defer in.mu.Unlock()
			in.events = append(in.events, what)
		},
		OnOutcome: func(o client.Outcome) { in.mu.Lock(); defer in.mu.Unlock(); in.outcomes = append(in.outcomes, o) }}
	for _, f := range change {
		f(&o)
	}
	var err error
	in.Client, err = client.Dial(ctx, o)
	require.NoError(t, err)
	t.Cleanup(in.Close)
	return in
}

// raw opens a WebSocket of a user, and sends nothing on it. The returned function sends a frame, unless the frame is
// empty, and returns the next frame from the gateway that is not a heartbeat. If the connection has ended, the function
// returns the text of the error instead.
func raw(t *testing.T, address, user string) func(frame string) string {
	t.Helper()
	socket, r, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+address+"/ws",
		http.Header{"Authorization": {"Bearer " + token(t, user, "")}})
	require.NoError(t, err)
	_ = r.Body.Close()
	t.Cleanup(func() { _ = socket.Close() })
	return func(frame string) string {
		if frame != "" {
			require.NoError(t, socket.WriteMessage(websocket.TextMessage, []byte(frame)))
		}
		for {
			require.NoError(t, socket.SetReadDeadline(time.Now().Add(10*time.Second)))
			_, text, err := socket.ReadMessage()
			if err != nil {
				return err.Error()
			}
			if !strings.HasPrefix(string(text), `{"type":"heartbeat"`) {
				return string(text)
			}
		}
	}
}

func (in *inbox) seen() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]string(nil), in.events...)
}

func (in *inbox) expect(t *testing.T, want ...string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(in.seen()) >= len(want) }, 10*time.Second, time.Millisecond,
		"want %v", want)
	require.Equal(t, want, in.seen())
}

var hello = map[string]string{"conversation_id": "g", "body": "hello"}

func TestGateway_ACommandsEventReachesEveryConnectionOfEveryMemberOnEveryGateway(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.onCommand(m.commits)
	m.start(`["alice","bob"]`)
	one, _ := m.gateway(settings{})
	two, _ := m.gateway(settings{})
	alice, bob := connect(t, one, "alice"), connect(t, one, "bob")
	bobToo, eve := connect(t, two, "bob"), connect(t, two, "eve")
	o, err := alice.Command(t.Context(), "chat.send_message", hello)
	require.NoError(t, err)
	require.Equal(t, "committed", o.Kind)
	require.EqualValues(t, 2, o.Version)
	for _, in := range []*inbox{alice, bob, bobToo} {
		in.expect(t, "hello")
	}
	require.Empty(t, eve.seen())

	m.member("chat.member_added", "eve")
	m.messageSent("welcome")
	m.member("chat.member_left", "bob")
	m.messageSent("bye")
	eve.expect(t, "member_added eve", "welcome", "member_left bob", "bye")
	bob.expect(t, "hello", "member_added eve", "welcome", "member_left bob")
}

func TestGateway_WhenBehindItShowsNoEventsFromBetweenMemberships(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	reader := &gate{open: make(chan struct{})}
	close(reader.open)
	address, _ := m.gateway(settings{hold: reader.pass})
	current, _ := m.gateway(settings{})
	there, ahead := connect(t, address, "bob"), connect(t, current, "bob") // both stay connected throughout the test
	reader.shut()
	m.messageSent("within")
	m.member("chat.member_left", "bob")
	m.messageSent("between")
	m.member("chat.member_added", "bob")
	m.messageSent("back")
	m.member("chat.member_left", "bob")
	m.messageSent("between again")
	m.member("chat.member_added", "bob")
	seen := []string{"within", "member_left bob", "member_added bob", "back", "member_left bob", "member_added bob"}
	ahead.expect(t, seen...)
	require.Empty(t, there.seen(), "the gateway is held back")
	late := connect(t, address, "bob") // its rooms come from an owner that is ahead of this gateway
	close(reader.open)
	m.messageSent("live")
	there.expect(t, append(seen, "live")...)
	late.expect(t, "live")
}

// A gateway reads the partition of a conversation late, and the other partitions at once. A member is removed, and then
// another member reacts to a message. The removed member must not get the reaction, although it is in another stream.
func TestGateway_WhenBehindItShowsNoCounterOfARoomToAFormerMember(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	reader, late := &gate{open: make(chan struct{})}, envelope.Partition("conversation:g", 3)
	close(reader.open)
	address, _ := m.gateway(settings{hold: func(ctx context.Context, topic string, partition int32) {
		if topic == "chat-events" && partition == late {
			reader.pass(ctx, topic, partition)
		}
	}})
	alice, bob := connect(t, address, "alice"), connect(t, address, "bob")
	reader.shut()
	m.member("chat.member_left", "bob")
	const messages = 20 // their reactions are streams that would be in all partitions
	for n := range messages {
		m.publish(m.owners["chat"].Append("alice", "chat.reactions_changed",
			fmt.Sprintf(`{"conversation_id":"g","message_id":"m%d","emoji":"x"}`, n)))
	}
	m.publish(m.owners["chat"].Append("alice", "chat.read_marker_moved", `{"conversation_id":"other","user_id":"bob","up_to":1}`))
	require.Eventually(t, func() bool { return len(bob.seen()) == 1 }, 10*time.Second, time.Millisecond, "the marker")
	close(reader.open)
	require.Eventually(t, func() bool { return len(alice.seen()) == 1+messages }, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return len(bob.seen()) == 2 }, 10*time.Second, time.Millisecond)
	require.Contains(t, bob.seen(), "member_left bob")
}

// gate holds back a gateway's reader while the gate is shut.
type gate struct {
	mu   sync.Mutex
	open chan struct{}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) pass(ctx context.Context, _ string, _ int32) {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
	case <-ctx.Done():
	}
}

func TestGateway_AMissingRecordIsFilledFromTheLog(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(settings{})
	bob := connect(t, address, "bob")
	m.messageSent("one")
	m.owners["chat"].Append("alice", "chat.message_sent", `{"conversation_id":"g","message_id":"x","body":"lost"}`)
	m.messageSent("three")
	bob.expect(t, "one", "lost", "three")
}

func TestGateway_RefusedAndUnchangedOutcomesArrive(t *testing.T) {
	t.Parallel()
	m := begin(t)
	result := func(c envelope.Command, kind envelope.Kind) envelope.Outcome {
		return envelope.Outcome{Actor: c.Actor, CommandID: c.ID, Type: c.Type, Source: "chat", Stream: c.Stream, Kind: kind,
			Version: 4}
	}
	m.onCommand(func(c envelope.Command) {
		r := result(c, envelope.Unchanged)
		if c.Type == "chat.send_message" {
			r = result(c, envelope.Refused)
			r.Code, r.Text = refusal.NotAMember, "you are not in it"
		}
		if err := m.publisher.Publish("chat-results", r.Message()); err != nil {
			t.Error(err)
		}
	})
	address, _ := m.gateway(settings{})
	alice := connect(t, address, "alice")
	_, err := alice.Command(t.Context(), "chat.send_message", hello)
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, client.Error{Code: refusal.NotAMember, Message: "you are not in it"}, *refused)
	o, err := alice.Command(t.Context(), "chat.leave", map[string]string{"conversation_id": "g"})
	require.NoError(t, err)
	require.Equal(t, "unchanged", o.Kind)
}

func TestGateway_TheOutcomeFollowsQueued(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice"]`)
	taken := make(chan envelope.Command, 1)
	m.onCommand(func(c envelope.Command) { taken <- c })
	address, _ := m.gateway(settings{patience: 200 * time.Millisecond})
	alice := connect(t, address, "alice")
	_, err := alice.CommandAs(t.Context(), "c1", "chat.send_message", hello)
	var queued *client.Error
	require.ErrorAs(t, err, &queued)
	require.Equal(t, refusal.Queued, queued.Code)
	m.commits(<-taken)
	require.Eventually(t, func() bool {
		alice.mu.Lock()
		defer alice.mu.Unlock()
		return len(alice.outcomes) == 1 && alice.outcomes[0].CommandID == "c1" && alice.outcomes[0].Kind == "committed"
	}, 10*time.Second, time.Millisecond)
}

func TestGateway_CommandsAreUnavailableWithoutKafka(t *testing.T) {
	t.Parallel()
	m := begin(t)
	address, _ := m.gateway(settings{patience: 200 * time.Millisecond})
	alice := connect(t, address, "alice")
	m.broker.Stop()
	_, err := alice.Command(t.Context(), "chat.send_message", hello)
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, refusal.Unavailable, refused.Code)
	_, err = alice.Request(t.Context(), map[string]any{"type": "ping"})
	require.NoError(t, err)
}

func TestGateway_QueriesSeeTheUsersOwnWrites(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.onCommand(m.commits)
	m.start(`["alice"]`)
	asked := make(chan fake.Question, 1)
	m.owners["chat"].OnQuery(func(name string, q fake.Question) (string, error) {
		if q.Actor == "eve" {
			return "", refusal.New(refusal.NotAMember, "you are not in it")
		}
		asked <- q
		return `{"messages":[{"message_id":"m1","version":"2","body":"hello"}],"version":"2"}`, nil
	})
	address, _ := m.gateway(settings{})
	alice := connect(t, address, "alice")
	_, err := alice.Command(t.Context(), "chat.send_message", hello)
	require.NoError(t, err)
	var answer struct {
		Messages []struct {
			Body    string
			Version catalog.Version
		}
	}
	require.NoError(t, alice.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, &answer))
	require.Equal(t, "hello", answer.Messages[0].Body)
	require.EqualValues(t, 2, answer.Messages[0].Version)
	q := <-asked
	require.Equal(t, "alice", q.Actor)
	require.EqualValues(t, 2, q.Position)

	eve := connect(t, address, "eve")
	err = eve.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, &answer)
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, refusal.NotAMember, refused.Code)
	m.owners["chat"].SetAway(true)
	err = alice.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, &answer)
	require.ErrorAs(t, err, &refused)
	require.Equal(t, refusal.Unavailable, refused.Code)
}

// The projection of an owner may be behind the owner's log. Before the owner answers a query, it waits until the
// projection has reached the position that the query contains. This position must therefore cover every event that was
// committed before the connection was opened, or before the HTTP request was sent.
func TestGateway_QueriesSeeEventsFromBeforeTheConnection(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.onCommand(m.commits)
	m.start(`["alice"]`)
	chat := m.owners["chat"]
	chat.OnQuery(func(_ string, q fake.Question) (string, error) {
		var messages []string
		for _, e := range chat.Log() {
			if e.Position <= q.Position && e.Type == "chat.message_sent" {
				messages = append(messages, fmt.Sprintf(`{"message_id":%q,"body":"hello"}`, e.Cause))
			}
		}
		return `{"messages":[` + strings.Join(messages, ",") + `]}`, nil
	})
	address, _ := m.gateway(settings{})
	_, err := connect(t, address, "alice").Command(t.Context(), "chat.send_message", hello)
	require.NoError(t, err)
	const asked = `{"conversation_id":"g"}`

	var answer struct{ Messages []struct{ Body string } }
	require.NoError(t, connect(t, address, "alice").Query(t.Context(), "chat.history", json.RawMessage(asked), &answer))
	require.Len(t, answer.Messages, 1, "read on another connection")

	for _, path := range []string{"/api/chat.history", "/api/edumatrix.chat.v1.ChatService/History"} {
		status, answer, _ := call(t, address, path, asked, "Authorization", "Bearer "+token(t, "alice", ""))
		require.Equal(t, http.StatusOK, status, answer)
		require.Len(t, answer["messages"], 1, path)
	}

	release := chat.HoldRooms()
	defer release()
	early := raw(t, address, "alice")
	reply := early(`{"id":"0","type":"connect"}` + "\n" + `{"id":"1","type":"chat.history","data":` + asked + `}`)
	for !strings.Contains(reply, `"reply_to":"1"`) {
		require.NotContains(t, reply, `"reply_to":"0"`)
		reply = early("")
	}
	require.Contains(t, reply, `"body":"hello"`, "sent before the rooms are known")
}

// call posts a body to a path of the HTTP API. The headers are pairs of a name and a value.
func call(t *testing.T, address, path, body string, headers ...string) (int, map[string]any, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+path, strings.NewReader(body))
	require.NoError(t, err)
	for n := 0; n < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	var answer map[string]any
	require.NoError(t, json.Unmarshal(text, &answer), string(text))
	return response.StatusCode, answer, response.Header
}

func TestGateway_HTTPAcceptsTheSameCommandsAndQueries(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.onCommand(m.commits)
	m.start(`["alice"]`)
	m.owners["chat"].OnQuery(func(_ string, q fake.Question) (string, error) {
		return fmt.Sprintf(`{"messages":[{"body":%q}]}`, q.Actor), nil
	})
	address, _ := m.gateway(settings{})
	alice := []string{"Authorization", "Bearer " + token(t, "alice", "")}
	service := []string{"Authorization", "Bearer " + token(t, "library", "service"), "On-Behalf-Of", "bob"}
	with := func(base []string, more ...string) []string { return append(append([]string(nil), base...), more...) }
	const send, history = "/api/chat.send_message", "/api/edumatrix.chat.v1.ChatService/History"

	status, answer, _ := call(t, address, send, `{"conversation_id":"g","body":"hi"}`, with(alice, "Command-Id", "c1")...)
	require.Equal(t, http.StatusOK, status, answer)
	require.Equal(t, map[string]any{"ok": true, "outcome": map[string]any{"kind": "committed", "command_id": "c1",
		"stream": "conversation:g", "version": 2.0}}, answer)

	for _, path := range []string{"/api/chat.history", history} {
		status, answer, _ = call(t, address, path, `{"conversation_id":"g"}`,
			with(service, "Content-Type", "application/json")...)
		require.Equal(t, http.StatusOK, status, answer)
		require.Equal(t, "bob", answer["messages"].([]any)[0].(map[string]any)["body"], "the user on whose behalf it asks")
	}

	for _, c := range []struct {
		path, body string
		headers    []string
		status     int
		code       string
	}{
		{send, `{"conversation_id":"g","body":"hi"}`, nil, 401, refusal.Unauthorized},
		{send, `{"conversation_id":"g","body":"hi"}`, []string{"Authorization", "Bearer forged"}, 401, refusal.Unauthorized},
		{send, `{"conversation_id":"g","body":"hi"}`, with(alice, "On-Behalf-Of", "bob"), 401, refusal.Unauthorized},
		{send, `{`, alice, 400, refusal.Malformed},
		{send, `{"conversation_id":"g","colour":"red"}`, alice, 400, refusal.InvalidField},
		{send, strings.Repeat("x", 1<<19), alice, 413, "too_large"},
		{"/api/chat.send_mesage", `{}`, alice, 404, refusal.UnknownType},
		{history, `{"conversation_id":""}`, with(alice, "Content-Type", "application/json"), 400, refusal.InvalidField},
		{history, `{}`, with(alice, "Content-Type", "text/plain"), 400, refusal.Malformed},
		{"/api/edumatrix.mesh.v1.OwnerService/ReadLog", `{}`, alice, 404, refusal.UnknownType},
		{"/api/edumatrix.mesh.v1.ConnectionService/Report", `{}`, alice, 404, refusal.UnknownType},
		{"/api/edumatrix.chat.v1.ChatService/Nothing", `{}`, alice, 404, refusal.UnknownType},
		{send, `{}`, with(alice, "Origin", "https://evil.example"), 403, refusal.Unauthorized},
	} {
		status, answer, _ = call(t, address, c.path, c.body, c.headers...)
		require.Equal(t, c.status, status, "%s %s: %v", c.path, c.headers, answer)
		require.Equal(t, c.code, answer["error"].(map[string]any)["code"], "%s: %v", c.path, answer)
	}
	// Client libraries do not usually send requests such as the following, but other programs may.
	ok := `{"conversation_id":"g","body":"hi"}`
	for _, c := range []struct {
		method, path, body string
		change             func(h http.Header)
		status             int
		code               string
	}{
		{"POST", send, ok, func(h http.Header) { h["Command-Id"] = []string{""} }, 400, refusal.InvalidField},
		{"POST", send, ok, func(h http.Header) { h["Command-Id"] = []string{"a", "a"} }, 400, refusal.Malformed},
		{"POST", send, ok, func(h http.Header) { h["On-Behalf-Of"] = []string{""} }, 400, refusal.InvalidField},
		{"POST", send, ok, func(h http.Header) { h["On-Behalf-Of"] = []string{"alice", "bob"} }, 400, refusal.Malformed},
		{"POST", send, ok, func(h http.Header) { h["Authorization"] = append(h["Authorization"], "Bearer x") }, 400, refusal.Malformed},
		{"POST", send, ok, func(h http.Header) { h["Authorization"] = []string{"Bearer "} }, 401, refusal.Unauthorized},
		{"POST", send, ok, func(h http.Header) { h["Content-Encoding"] = []string{"gzip"} }, 400, refusal.Malformed},
		{"POST", send, ok, func(h http.Header) { h["Origin"] = []string{"https://school.example", "https://school.example"} }, 403, refusal.Unauthorized},
		{"POST", send + "?body=hi", ok, nil, 400, refusal.InvalidField},
		{"POST", history, `{}`, func(h http.Header) { h["Content-Type"] = []string{"application/json; charset=latin1"} }, 400, refusal.Malformed},
		{"POST", history, `{"conversation_id":"g"}`, func(h http.Header) { h["Content-Type"] = []string{"application/json; charset=UTF-8"} }, 200, ""},
		{"POST", history, `{"conversation_id":"g"}`, func(h http.Header) { h["Connect-Timeout-Ms"] = []string{"-1"} }, 400, refusal.InvalidField},
		{"GET", send, "", nil, 405, refusal.Malformed},
		{"OPTIONS", send, "", nil, 204, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+address+c.path, strings.NewReader(c.body))
		require.NoError(t, err)
		r.Header.Set(alice[0], alice[1])
		if c.change != nil {
			c.change(r.Header)
		}
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		_ = response.Body.Close()
		require.Equal(t, c.status, response.StatusCode, "%s %s %v: %s", c.method, c.path, r.Header, text)
		if c.code != "" { // Connect clients get this code in addition to Connect's own
			require.Contains(t, string(text), c.code, "%s %s %v", c.method, c.path, r.Header)
		}
		if c.method != http.MethodPost {
			require.Equal(t, "POST, OPTIONS", response.Header.Get("Allow"))
		}
	}
	_, _, header := call(t, address, send, `{}`, with(alice, "Origin", "https://school.example")...)
	require.Equal(t, "https://school.example", header.Get("Access-Control-Allow-Origin"))
}

func TestGateway_HealthReportsItsDependencies(t *testing.T) {
	t.Parallel()
	m := begin(t)
	address, _ := m.gateway(settings{})
	health := func() (int, string) {
		response, err := http.Get("http://" + address + "/health")
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(bytes.TrimSpace(body))
	}
	require.Eventually(t, func() bool {
		status, body := health()
		return status == 200 && body ==
			`{"status":"healthy","services":{"redis":true,"kafka":true,"postgres":true,"socketio":true}}`
	}, 10*time.Second, 20*time.Millisecond)
	require.Contains(t, metrics(t, address), "gateway_partition_position")
	for _, path := range []string{"/metrics", "/metrics/", "//metrics", "/./metrics", "/health/../metrics"} {
		response, err := http.Get("http://" + address + path)
		require.NoError(t, err)
		_ = response.Body.Close()
		require.Equal(t, http.StatusNotFound, response.StatusCode, "%s at the clients' listener", path)
	}
	at, _ := metricsOf.Load(address)
	for _, path := range []string{"/ws", "/health", "/api/chat.history"} {
		response, err := http.Get(fmt.Sprintf("http://%s%s", at, path))
		require.NoError(t, err)
		_ = response.Body.Close()
		require.Equal(t, http.StatusNotFound, response.StatusCode, "%s at the metrics' listener", path)
	}
	require.NoError(t, m.stores.Redis.Close())
	require.Eventually(t, func() bool {
		status, body := health()
		return status == 503 && strings.Contains(body, `"redis":false`)
	}, 10*time.Second, 20*time.Millisecond)
}

func TestGateway_StopsGracefully(t *testing.T) {
	t.Parallel()
	m := begin(t)
	m.start(`["alice"]`)
	taken := make(chan envelope.Command, 1)
	m.onCommand(func(c envelope.Command) { taken <- c })
	address, stop := m.gateway(settings{})
	alice := connect(t, address, "alice")
	outcome := make(chan error, 1)
	go func() {
		_, err := alice.Command(context.Background(), "chat.send_message", hello)
		outcome <- err
	}()
	c := <-taken
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	require.Eventually(t, func() bool {
		r, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return true
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusServiceUnavailable
	}, 10*time.Second, time.Millisecond)
	m.commits(c)
	require.NoError(t, <-outcome, "a command in flight gets its outcome")
	<-alice.Done()
	require.ErrorContains(t, alice.Err(), "4000")
	<-stopped
	reports := m.owners["presence"].Reports()
	require.True(t, reports[len(reports)-1].Ends)
}

//go:build integration

package owner_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	notificationv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// room is the aggregate of these tests. It refuses messages of the user "stranger". For other users, its decision
// panics at the text "panic", the event of a message with the text "unstorable" cannot be stored, and any other message
// is accepted.
type room struct{ id string }

func newRoom(stream string) owner.State { return &room{strings.TrimPrefix(stream, "conversation:")} }

func (r *room) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	said, ok := command.(*chatv1.SendMessage)
	if !ok {
		return nil, nil
	}
	sent := &chatv1.MessageSent{ConversationId: r.id, MessageId: by.NewID(), Body: said.Body}
	switch {
	case by.Actor == "stranger":
		return nil, refusal.New(refusal.NotAMember, "no")
	case said.Body == "panic":
		panic("requested by the test")
	case said.Body == "unstorable":
		sent.MessageId = "a\x00b" // Postgres cannot store a NUL, so the transaction fails
	}
	return []proto.Message{sent}, nil
}

func (*room) Evolve(catalog.Fact, proto.Message) {}

func (*room) Forget() {}

// world is the environment of a test: a database, a broker, and the messages that the service "chat" has published. A
// test can start and stop the service several times.
type world struct {
	t         *testing.T
	env       process.Env
	catalog   *catalog.Catalog
	publisher *bus.Publisher

	mu       sync.Mutex
	outcomes map[string][]envelope.Outcome // by command id
	dead     []*message.Message
	events   []envelope.Event
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, meshtest.EmbeddedKafka(t))
}

func newWorldOn(t *testing.T, kafka backend.Kafka) *world {
	t.Helper()
	declared, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kafka.EnsureTopics(t.Context(), declared.Topics("")); err != nil {
		t.Fatal(err)
	}
	pool, err := backend.Postgres{URL: meshtest.Postgres(t)}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := &world{t: t, catalog: declared, outcomes: map[string][]envelope.Outcome{}}
	w.env = w.environment("chat", &backend.Stores{Postgres: pool, Kafka: kafka})
	if w.publisher, err = bus.NewPublisher(kafka, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.publisher.Close() })
	w.listen()
	return w
}

func (w *world) environment(service string, stores *backend.Stores) process.Env {
	w.t.Helper()
	traces, err := telemetry.Start(w.t.Context(), telemetry.Options{Service: service})
	if err != nil {
		w.t.Fatal(err)
	}
	return process.Env{Stores: stores, Catalog: w.catalog, Telemetry: traces, Log: slog.New(slog.DiscardHandler),
		Config: config.Config{Service: service, Host: "127.0.0.1", Port: meshtest.FreePort(w.t), ServiceSecret: "of this test",
			Peers: map[string]string{}}}
}

// listen collects the outcomes, dead letters and events that the service publishes, in w.outcomes, w.dead and w.events.
func (w *world) listen() {
	w.t.Helper()
	reader, err := bus.NewReader(w.env.Stores.Kafka, bus.ReaderOptions{
		From: func(_ string, _ int32, oldest, _ int64) int64 { return oldest }})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	for topic, take := range map[string]func(*message.Message){
		catalog.ResultTopic("chat"): func(m *message.Message) {
			if r, err := envelope.ReadOutcome(m); err == nil {
				w.outcomes[r.CommandID] = append(w.outcomes[r.CommandID], r)
			}
		},
		catalog.DeadLetterTopic("chat"): func(m *message.Message) { w.dead = append(w.dead, m) },
		"chat-events": func(m *message.Message) {
			e, err := envelope.ReadEvent(m)
			if err != nil || e.IsPosition() {
				return
			}
			w.events = append(w.events, e)
			if e.Answers {
				w.outcomes[e.Cause] = append(w.outcomes[e.Cause], e.Outcome())
			}
		},
	} {
		messages, err := reader.Subscribe(ctx, topic)
		if err != nil {
			w.t.Fatal(err)
		}
		reading.Go(func() {
			for m := range messages {
				w.mu.Lock()
				take(m)
				w.mu.Unlock()
				m.Ack()
			}
		})
	}
	w.t.Cleanup(func() {
		stop()
		_ = reader.Close()
		reading.Wait()
	})
}

// start runs the service until the returned function is called.
func (w *world) start(prepare func(*owner.Service)) (stop func()) {
	w.t.Helper()
	return w.startIn(w.env, prepare)
}

func (w *world) startIn(env process.Env, prepare func(*owner.Service)) (stop func()) {
	w.t.Helper()
	ready := make(chan struct{})
	env.Ready = func() { close(ready) }
	s, err := owner.Open(w.t.Context(), env, fs.FS(nil))
	if err != nil {
		w.t.Fatal(err)
	}
	prepare(s)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case <-ready:
	case err := <-ended:
		w.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// The schema of a service has a table that no projection declares. The service must not start, because a rebuild would
// neither fill nor compare this table.
func TestRun_RefusesATableThatNoProjectionDeclares(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.env.Ready = cancel // without the check, Run would start and end without an error
	s, err := owner.Open(t.Context(), w.env, nil)
	require.NoError(t, err)
	rooms(s)
	_, err = w.env.Stores.Postgres.Exec(t.Context(), "CREATE TABLE chat.forgotten (id int)")
	require.NoError(t, err)
	require.ErrorContains(t, s.Run(ctx), "forgotten")
}

// rooms registers an aggregate for every kind of streams of the service chat. Only commands about conversations are
// sent.
func rooms(s *owner.Service) {
	declared, err := catalog.Load()
	if err != nil {
		panic(err)
	}
	for _, c := range declared.CommandsOf("chat") {
		s.HandleCommands(c.Kind(), newRoom)
	}
}

func say(actor, id, conversation, body string) envelope.Command {
	raw, _ := proto.Marshal(&chatv1.SendMessage{ConversationId: conversation, Body: body})
	return envelope.Command{ID: id, Type: "chat.send_message", Stream: "conversation:" + conversation, Actor: actor,
		Time: time.Now(), Body: raw}
}

func (w *world) send(commands ...envelope.Command) {
	w.t.Helper()
	var all []*message.Message
	for _, c := range commands {
		all = append(all, c.Message())
	}
	if err := w.publisher.Publish(catalog.CommandTopic("chat"), all...); err != nil {
		w.t.Fatal(err)
	}
}

// outcome waits for the n-th published outcome of a command.
func (w *world) outcome(id string, n int) envelope.Outcome {
	w.t.Helper()
	var r envelope.Outcome
	w.eventually(fmt.Sprintf("outcome %d of %s", n, id), func() bool {
		if len(w.outcomes[id]) < n {
			return false
		}
		r = w.outcomes[id][n-1]
		return true
	})
	return r
}

func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	meshtest.Eventually(w.t, what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return is()
	})
}

func TestCommand_HasOneOutcomeHoweverOftenItIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.start(rooms)
	a, refused := say("alice", uuid.NewString(), "7", "hi"), say("stranger", uuid.NewString(), "7", "hi")
	w.send(a, a, refused)
	first := w.outcome(a.ID, 1)
	if first.Kind != envelope.Committed || first.Version != 1 {
		t.Fatalf("%+v", first)
	}
	if again := w.outcome(a.ID, 2); again.Kind != envelope.Committed || again.Version != 1 || again.Position != first.Position {
		t.Fatalf("again: %+v, first %+v", again, first)
	}
	if r := w.outcome(refused.ID, 1); r.Kind != envelope.Refused || r.Code != refusal.NotAMember {
		t.Fatalf("%+v", r)
	}
	stop() // after the restart, the service has no cached states
	w.start(rooms)
	w.send(refused, a)
	if r := w.outcome(refused.ID, 2); r.Kind != envelope.Refused || r.Code != refusal.NotAMember {
		t.Fatalf("%+v", r)
	}
	if r := w.outcome(a.ID, 3); r.Version != 1 {
		t.Fatalf("%+v", r)
	}
	elsewhere := a
	elsewhere.Stream = "conversation:8"
	elsewhere.Body, _ = proto.Marshal(&chatv1.SendMessage{ConversationId: "8", Body: "hi"})
	w.send(elsewhere)
	if r := w.outcome(a.ID, 4); r.Kind != envelope.Refused || r.Code != refusal.IDReused || r.Stream != "conversation:8" {
		t.Fatalf("the id for another conversation: %+v", r)
	}
	other := say("bob", a.ID, "7", "hi")
	w.send(other)
	if r := w.outcome(a.ID, 5); r.Kind != envelope.Committed || r.Actor != "bob" || r.Version != 2 {
		t.Fatalf("the same id from another user: %+v", r)
	}
	changed := a
	changed.Body, _ = proto.Marshal(&chatv1.SendMessage{ConversationId: "7", Body: "something else"})
	w.send(changed)
	if r := w.outcome(a.ID, 6); r.Kind != envelope.Refused || r.Code != refusal.IDReused {
		t.Fatalf("the id with other content: %+v", r)
	}
}

// A service crashes after it has stored the refusal of a command and before it has published the outcome. The command
// is delivered again. The outcome must be the stored refusal, although a new decision would have another outcome.
func TestCommand_ARefusalSurvivesALostAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := say("stranger", uuid.NewString(), "7", "hi")
	log, err := eventlog.Open(t.Context(), eventlog.Options{Owner: "chat", Pool: w.env.Stores.Postgres, Catalog: w.catalog})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- log.Run(ctx) }()
	if _, err := log.Commit(t.Context(), eventlog.Write{Stream: c.Stream, Commands: []eventlog.Decided{{Actor: c.Actor,
		CommandID: c.ID, Type: c.Type, Kind: envelope.Refused, Code: "as_it_was_then", Text: "then"}}}); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.start(rooms)
	w.send(c)
	if r := w.outcome(c.ID, 1); r.Code != "as_it_was_then" {
		t.Fatalf("%+v", r)
	}
}

func TestCommand_ThatHasExpiredIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	late, intime := say("alice", uuid.NewString(), "7", "late"), say("alice", uuid.NewString(), "7", "in time")
	late.Time, late.Expires = time.Now().Add(-time.Hour), time.Now().Add(-time.Hour+30*time.Second)
	intime.Expires = time.Now().Add(time.Hour)
	w.send(late, intime)
	if r := w.outcome(late.ID, 1); r.Kind != envelope.Refused || r.Code != refusal.Expired {
		t.Fatalf("%+v", r)
	}
	if r := w.outcome(intime.ID, 1); r.Kind != envelope.Committed || r.Version != 1 {
		t.Fatalf("%+v", r)
	}
}

// A hundred commands per second fail because of their content, while other commands change the same streams. The
// failing commands must get the outcome "failed" and become dead letters. The other commands must be committed in
// order.
func TestCommand_AFailureDoesNotAffectOtherCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	var bad, good []envelope.Command
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range 100 {
		kind := "unstorable"
		if i%2 == 0 {
			kind = "panic"
		}
		b := say("mallory", uuid.NewString(), fmt.Sprint("room", i%5), kind)
		bad = append(bad, b)
		batch := []envelope.Command{b}
		for j := range 5 {
			g := say("alice", uuid.NewString(), fmt.Sprint("room", j), "fine")
			good, batch = append(good, g), append(batch, g)
		}
		w.send(batch...)
		<-tick.C
	}
	versions := map[string]catalog.Version{}
	for _, g := range good {
		r := w.outcome(g.ID, 1)
		if r.Kind != envelope.Committed || r.Version != versions[g.Stream]+1 {
			t.Fatalf("%+v after version %d", r, versions[g.Stream])
		}
		versions[g.Stream] = r.Version
	}
	for _, b := range bad {
		if r := w.outcome(b.ID, 1); r.Kind != envelope.Failed || r.Code != refusal.Failed {
			t.Fatalf("%+v", r)
		}
	}
	w.eventually("100 dead letters", func() bool { return len(w.dead) == 100 })
	w.send(bad[0])
	if r := w.outcome(bad[0].ID, 2); r.Kind != envelope.Failed {
		t.Fatalf("a failed command that was sent again: %+v", r)
	}
}

func TestCommand_ThatCannotBeDecodedBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	noise := message.NewMessage("noise", []byte{0xff, 0xfe})
	noise.Metadata.Set(envelope.MetadataKey, "conversation:7")
	torn, unknown := say("alice", uuid.NewString(), "7", "x"), say("alice", uuid.NewString(), "7", "x")
	torn.Body = []byte{0xff, 0xff, 0xff}
	unknown.Type = "chat.no_such"
	if err := w.publisher.Publish(catalog.CommandTopic("chat"), noise); err != nil {
		t.Fatal(err)
	}
	fine := say("alice", uuid.NewString(), "7", "x")
	w.send(torn, unknown, fine)
	if r := w.outcome(fine.ID, 1); r.Kind != envelope.Committed {
		t.Fatalf("%+v", r)
	}
	for _, c := range []envelope.Command{torn, unknown} {
		if r := w.outcome(c.ID, 1); r.Kind != envelope.Failed {
			t.Fatalf("%+v", r)
		}
	}
	w.eventually("three dead letters", func() bool { return len(w.dead) == 3 })
}

// A command does not match its declaration, and reaches the owner although gateways refuse such commands. The owner
// must refuse the command, name the field, and store nothing.
func TestCommand_ThatDoesNotMatchItsDeclarationIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	correlated, traced := say("alice", "correlated", "7", "x"), say("alice", "traced", "7", "x")
	correlated.Correlation, traced.TraceParent = "a\x00b", "00-\xff"
	for _, test := range []struct {
		command envelope.Command
		text    string
	}{
		{say("alice", "id", "a\x00b", "x"), "stream contains the character U+0000"},
		{say("alice", "c\x00d", "7", "x"), "command_id contains the character U+0000"},
		{say("al\x00ice", "actor", "7", "x"), "actor contains the character U+0000"},
		{say("al\xffice", "bytes", "7", "x"), "actor is not UTF-8"},
		{correlated, "correlation contains the character U+0000"},
		{traced, "traceparent is not UTF-8"},
		{say("alice", "body", "7", "a\x00b"), "body contains the character U+0000"},
		{say("alice", "empty", "7", ""), "body is missing"},
		{say("alice", "space", "a b", "x"), "conversation_id has to be an id"},
		{say("alice", "long", "7", strings.Repeat("x", 8001)), "body has 8001 characters"},
	} {
		w.send(test.command, test.command)
		for n := range 2 {
			r := w.outcome(test.command.ID, n+1)
			if r.Kind != envelope.Refused || r.Code != refusal.InvalidField || !strings.Contains(r.Text, test.text) ||
				r.Actor != test.command.Actor || r.Stream != test.command.Stream {
				t.Errorf("%q: %+v", test.text, r)
			}
		}
	}
	fine := say("alice", uuid.NewString(), "7", "x")
	w.send(fine)
	if r := w.outcome(fine.ID, 1); r.Kind != envelope.Committed || r.Version != 1 {
		t.Errorf("%+v", r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.dead) > 0 {
		t.Errorf("%d dead letters", len(w.dead))
	}
}

// greet is a reaction that raises a notification for bob about each message.
func greet(e envelope.Event, _ proto.Message) []consume.Effect {
	return []consume.Effect{{Stream: "notifications:bob", Events: []proto.Message{&notificationv1.Raised{
		NotificationId: e.ID, RecipientId: "bob", By: e.Actor, AboutStream: e.Stream, AboutVersion: int64(e.Version)}}}}
}

// A caller has the versions of a stream up to AfterVersion. ReadLog must return only the later versions, and at most
// Limit of them.
func TestOwner_ReadsAStreamAfterAVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	for i := range 5 {
		w.send(say("alice", uuid.NewString(), "7", fmt.Sprint(i)))
	}
	w.eventually("the events", func() bool { return len(w.events) >= 5 })
	client := meshv1connect.NewOwnerServiceClient(rpc.NewClient("of this test", w.env.Telemetry.Tracer()),
		fmt.Sprintf("http://127.0.0.1:%d", w.env.Config.Port))
	answer, err := client.ReadLog(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{Stream: "conversation:7",
		AfterVersion: 2, Limit: 2}))
	if err != nil {
		t.Fatal(err)
	}
	var versions []catalog.Version
	for _, r := range answer.Msg.GetRecords() {
		e, err := envelope.ReadRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, e.Version)
	}
	if !slices.Equal(versions, []catalog.Version{3, 4}) {
		t.Errorf("versions %v", versions)
	}
}

// The aggregate of a stream panics when the stream's events are applied to it (Evolve). The commands on this stream
// must fail, but commands on other streams must succeed.
func TestCommand_AStreamThatCannotBeFoldedFailsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.start(rooms)
	poison := say("alice", uuid.NewString(), "7", "x")
	w.send(poison)
	w.outcome(poison.ID, 1)
	stop()
	w.start(func(s *owner.Service) {
		rooms(s)
		s.HandleCommands("conversation", func(stream string) owner.State {
			return &fragile{room{strings.TrimPrefix(stream, "conversation:")}}
		})
	})
	bad, good := say("alice", uuid.NewString(), "7", "x"), say("alice", uuid.NewString(), "8", "x")
	w.send(bad, good)
	if r := w.outcome(good.ID, 1); r.Kind != envelope.Committed {
		t.Fatalf("%+v", r)
	}
	if r := w.outcome(bad.ID, 1); r.Kind != envelope.Failed {
		t.Fatalf("%+v", r)
	}
}

// fragile is the aggregate room, but panics when an event of conversation 7 is applied to it.
type fragile struct{ room }

func (f *fragile) Evolve(catalog.Fact, proto.Message) {
	if f.id == "7" {
		panic("requested by the test")
	}
}

func TestOwner_RefusesCallsWithoutTheCredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	url := fmt.Sprintf("http://127.0.0.1:%d", w.env.Config.Port)
	c := meshv1connect.NewOwnerServiceClient(rpc.NewClient("another", w.env.Telemetry.Tracer()), url)
	var refused *connect.Error
	if _, err := c.Rooms(t.Context(), connect.NewRequest(&meshv1.RoomsRequest{Users: []string{"bob"}})); !errors.As(err, &refused) ||
		refused.Code() != connect.CodeUnauthenticated {
		t.Fatalf("got %v", err)
	}
}

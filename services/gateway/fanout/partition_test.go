package fanout

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// world is a fan-out that gets its records from a test, and one connection of bob.
type world struct {
	fan     *Fanout
	chat    *fake.Owner
	conn    *hub.Conn
	results []envelope.Outcome
}

func begin(t testing.TB) *world {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	w := &world{chat: fake.NewOwner(c, "chat")}
	server := httptest.NewServer(w.chat.Handler())
	t.Cleanup(server.Close)
	h := hub.New(hub.Options{Catalog: c})
	w.fan = New(Options{Catalog: c, Hub: h, Tracer: noop.Tracer{}, Log: slog.New(slog.DiscardHandler),
		Owners: map[string]meshv1connect.OwnerServiceClient{
			"chat": meshv1connect.NewOwnerServiceClient(server.Client(), server.URL)},
		Resolve: func(r envelope.Outcome) { w.results = append(w.results, r) }})
	counts := map[string]int32{}
	for _, topic := range c.Topics("") {
		counts[topic.Name] = topic.Partitions
	}
	w.fan.begin(counts)
	w.conn, err = h.Add("bob", frame.JSON)
	require.NoError(t, err)
	require.True(t, h.Shard("chat").Attach(w.conn, hub.Attachment{}))
	return w
}

// started starts a conversation. It returns the event and the partition of the conversation.
func (w *world) started(id string) (envelope.Event, int32) {
	e := w.chat.Append("alice", "chat.conversation_started",
		fmt.Sprintf(`{"conversation_id":%q,"user_ids":["alice","bob"]}`, id))
	return e, w.chat.Partition(e)
}

func (w *world) messageSent(conversation, body string) envelope.Event {
	return w.chat.Append("alice", "chat.message_sent",
		fmt.Sprintf(`{"conversation_id":%q,"message_id":"m","body":%q}`, conversation, body))
}

func (w *world) take(t testing.TB, partition int32, events ...envelope.Event) {
	t.Helper()
	for _, e := range events {
		require.NoError(t, w.partition(partition).take(t.Context(), w.fan, &e))
	}
}

func (w *world) partition(n int32) *partition { return w.fan.topics["chat-events"].partition(w.fan, n) }

// record returns a message in the form in which the reader gets it from Kafka.
func record(topic string, m *message.Message) *bus.Record {
	r := &bus.Record{Topic: topic, Value: m.Payload}
	for k, v := range m.Metadata {
		r.Headers = append(r.Headers, bus.Header{Key: k, Value: []byte(v)})
	}
	return r
}

func (w *world) seen(t *testing.T) (all []string) {
	t.Helper()
	for _, frame := range fake.Take(w.conn, 10_000) {
		var f struct {
			Event string
			Data  struct{ Body string }
		}
		require.NoError(t, json.Unmarshal(frame, &f))
		if f.Data.Body != "" {
			f.Event = f.Data.Body
		}
		all = append(all, f.Event)
	}
	return all
}

// elsewhere returns a conversation whose events are in a partition other than the given one.
func (w *world) elsewhere(partition int32) string {
	for n := range 1000 {
		id := fmt.Sprint("other", n)
		if envelope.Partition("conversation:"+id, 3) != partition {
			return id
		}
	}
	panic("all keys are in one partition")
}

func TestTake_DropsRepeats(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	one, two := w.messageSent("g", "one"), w.messageSent("g", "two")
	w.take(t, p, first, one, two, one, two, first, w.messageSent("g", "three"))
	require.Equal(t, []string{"chat.conversation_started", "one", "two", "three"}, w.seen(t))
}

func TestTake_FillsAGapFromTheOwnersLogBeforeItContinues(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	other := w.elsewhere(p)
	w.take(t, p, first)
	w.started(other)
	for n := range 8 { // more than one page of the fake owner's log
		w.messageSent("g", fmt.Sprint("missing", n))
		w.messageSent(other, "of another partition")
	}
	w.take(t, p, w.messageSent("g", "new"))
	want := []string{"chat.conversation_started"}
	for n := range 8 {
		want = append(want, fmt.Sprint("missing", n))
	}
	require.Equal(t, append(want, "new"), w.seen(t))
}

func TestTake_WaitsAtAGapWhileTheOwnerIsUnavailable(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	w.take(t, p, first)
	w.messageSent("g", "missing")
	next := w.messageSent("g", "new")
	w.chat.SetAway(true)
	require.Error(t, w.partition(p).take(t.Context(), w.fan, &next))
	require.Equal(t, []string{"chat.conversation_started"}, w.seen(t))
	w.chat.SetAway(false)
	w.take(t, p, next)
	require.Equal(t, []string{"missing", "new"}, w.seen(t))
}

func TestTake_SkipsUnreadableRecordsOfTheOwnersLog(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	w.take(t, p, first)
	w.messageSent("g", "missing")
	w.chat.Spoil(w.messageSent("g", "spoiled").Position)
	w.messageSent("g", "missing too")
	w.chat.Spoil(w.messageSent("g", "spoiled, before the new one").Position)
	w.take(t, p, w.messageSent("g", "new"), w.messageSent("g", "newer"))
	require.Equal(t, []string{"chat.conversation_started", "missing", "missing too", "new", "newer"}, w.seen(t))
	require.EqualValues(t, 2, testutil.ToFloat64(w.fan.options.Metrics.Unreadable))
}

func TestTake_PositionRecordsAdvanceThePositionAndRevealGaps(t *testing.T) {
	t.Parallel()
	w := begin(t)
	_, p := w.started("g")
	position := w.chat.Position("chat-events", p)
	w.take(t, p, position)
	require.Empty(t, w.seen(t), "events from before this gateway started are not delivered")
	var err error
	w.conn, err = w.fan.options.Hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	require.True(t, w.fan.options.Hub.Shard("chat").Attach(w.conn, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 1}))
	w.messageSent("g", "missing")
	w.take(t, p, w.chat.Position("chat-events", p))
	require.Equal(t, []string{"missing"}, w.seen(t))
	w.take(t, p, position, w.messageSent("g", "new"))
	require.Equal(t, []string{"new"}, w.seen(t))
}

func TestKnown_OnceEveryPartitionOfTheLogHasAPosition(t *testing.T) {
	t.Parallel()
	w := begin(t)
	logged := w.fan.options.Catalog.LoggedTopics("chat")
	for n := range int32(3) {
		require.False(t, w.fan.logs["chat"].isKnown())
		require.EqualValues(t, 7, w.fan.From("chat-results", n, 2, 7))
		require.EqualValues(t, 6, w.fan.From("chat-events", n, 2, 7))
	}
	for _, topic := range logged {
		for n := range topic.Partitions {
			require.False(t, w.fan.logs["chat"].isKnown())
			position := w.chat.Position(topic.Name, n)
			require.NoError(t, w.fan.topics[topic.Name].partition(w.fan, n).take(t.Context(), w.fan, &position))
		}
	}
	// No event was committed yet, so the owner's log is at position 0. This is a valid position.
	require.True(t, w.fan.logs["chat"].isKnown())
	require.ErrorContains(t, w.fan.Reading(), "feed")
	require.NotContains(t, w.fan.Reading().Error(), "chat")
}

func TestResults_AreResolvedWithoutOpenRooms(t *testing.T) {
	t.Parallel()
	w := begin(t)
	e := w.chat.Answer("carol", "c1", "chat.start_group", "chat.conversation_started",
		`{"conversation_id":"h","user_ids":["carol"]}`)
	w.take(t, w.chat.Partition(e), e)
	require.Empty(t, w.seen(t))
	require.Len(t, w.results, 1)
	require.Equal(t, "carol", w.results[0].Actor)
	require.Equal(t, "c1", w.results[0].CommandID)
	require.Equal(t, "chat.start_group", w.results[0].Type)
	require.Equal(t, envelope.Committed, w.results[0].Kind)

	refused := envelope.Outcome{Actor: "carol", CommandID: "c2", Type: "chat.leave", Source: "chat",
		Stream: "conversation:h", Kind: envelope.Refused, Code: "not_a_member", Text: "no"}
	w.fan.take(t.Context(), record("chat-results", refused.Message()))
	require.Equal(t, refused, w.results[1])
}

func TestUnreadable_IsSkipped(t *testing.T) {
	t.Parallel()
	w := begin(t)
	junk := message.NewMessage("x", []byte("junk"))
	w.fan.take(t.Context(), record("chat-events", junk))
	w.fan.take(t.Context(), record("chat-results", junk))
	first, p := w.started("g")
	w.take(t, p, first)
	e := w.messageSent("g", "broken")
	e.Body = []byte{0xff}
	w.take(t, p, e, w.messageSent("g", "good"))
	require.Equal(t, []string{"chat.conversation_started", "good"}, w.seen(t))
}

// A panic happens while a record is processed. The panic must affect only this record: the panic is counted, and the
// next record is processed.
func TestTake_APanicCostsOneRecord(t *testing.T) {
	t.Parallel()
	w := begin(t)
	counted := prometheus.NewRegistry()
	w.fan.options.Guard = guard.New(slog.New(slog.DiscardHandler), counted)
	resolved := 0
	w.fan.options.Resolve = func(envelope.Outcome) {
		if resolved++; resolved == 1 {
			panic("injected")
		}
	}
	refused := envelope.Outcome{Source: "chat", Actor: "alice", CommandID: "c1", Stream: "conversation:g",
		Type: "chat.send_message", Kind: envelope.Refused, Code: "not_a_member"}
	for range 2 {
		w.fan.take(t.Context(), record("chat-results", refused.Message()))
	}
	require.Equal(t, 2, resolved)
	n, err := testutil.GatherAndCount(counted, "gateway_panics_total")
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestFill_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	w.take(t, p, first)
	w.messageSent("g", "missing")
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	next := w.messageSent("g", "new")
	require.Error(t, w.partition(p).take(ctx, w.fan, &next))
}

func TestReading_ReportsASilentPartition(t *testing.T) {
	t.Parallel()
	w := begin(t)
	for owner := range w.fan.logs { // pretend that the positions of all partitions are known
		close(w.fan.logs[owner].known)
	}
	for _, topic := range w.fan.topics {
		for _, p := range topic.all() {
			p.last.Store(time.Now().UnixNano())
		}
	}
	require.NoError(t, w.fan.Reading())
	quiet := w.partition(1)
	quiet.last.Store(time.Now().Add(-silence - time.Second).UnixNano())
	require.ErrorContains(t, w.fan.Reading(), "chat-events/1")
	position := w.chat.Position("chat-events", 1)
	require.NoError(t, quiet.take(t.Context(), w.fan, &position))
	require.NoError(t, quiet.take(t.Context(), w.fan, &position), "the same position again")
	require.NoError(t, w.fan.Reading())
}

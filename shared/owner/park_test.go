//go:build integration

package owner_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	notificationv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// listener is a service "notification" that raises a notification for each message of chat. While its field fails is
// true, its reaction panics at a message with the text "choke", and the notification about a message with the text
// "spoil" cannot be stored.
type listener struct {
	*world
	env      process.Env
	topic    string
	fails    atomic.Bool
	log      meshv1connect.OwnerServiceClient
	operator meshv1connect.OperatorServiceClient
}

func newListener(t *testing.T, topic string) *listener {
	t.Helper()
	return newListenerOn(t, topic, meshtest.EmbeddedKafka(t))
}

func newListenerOn(t *testing.T, topic string, kafka backend.Kafka) *listener {
	t.Helper()
	w := newWorldOn(t, kafka)
	w.start(rooms)
	l := &listener{world: w, env: w.environment("notification", w.env.Stores), topic: topic}
	l.env.Config.Peers["chat"] = "http://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(w.env.Config.Port))
	client, url := rpc.NewClient("of this test", w.env.Telemetry.Tracer()), fmt.Sprintf("http://127.0.0.1:%d", l.env.Config.Port)
	l.log, l.operator = meshv1connect.NewOwnerServiceClient(client, url), meshv1connect.NewOperatorServiceClient(client, url)
	l.fails.Store(true)
	return l
}

func (l *listener) listens() (stop func()) {
	l.t.Helper()
	return l.startIn(l.env, func(s *owner.Service) { s.React(l.topic, consume.FromStart(), l.greet) })
}

func (l *listener) greet(e envelope.Event, event proto.Message) []consume.Effect {
	effects := greet(e, event)
	switch body := event.(*chatv1.MessageSent).GetBody(); {
	case !l.fails.Load():
	case body == "choke":
		panic("requested by the test")
	case body == "spoil":
		effects[0].Events[0].(*notificationv1.Raised).By = "b\x00b"
		effects[0].Actor = "b\x00b"
	}
	return effects
}

// say sends messages to a conversation and waits until they are in the log.
func (l *listener) say(conversation string, bodies ...string) {
	l.t.Helper()
	for _, body := range bodies {
		c := say("alice", uuid.NewString(), conversation, body)
		l.send(c)
		l.outcome(c.ID, 1)
	}
}

// raised returns, for each notification about a message of a conversation, the version of that message. The versions
// are in the order of the notifications.
func (l *listener) raised(conversation string) (versions []catalog.Version) {
	l.t.Helper()
	answer, err := l.log.ReadLog(l.t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{Stream: "notifications:bob", Limit: 1000}))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, r := range answer.Msg.GetRecords() {
		m := &notificationv1.Raised{}
		if err := proto.Unmarshal(r.GetBody(), m); err != nil {
			l.t.Fatal(err)
		}
		if m.AboutStream == "conversation:"+conversation {
			versions = append(versions, catalog.Version(m.AboutVersion))
		}
	}
	return versions
}

func (l *listener) awaitRaised(conversation string, want ...catalog.Version) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("greetings for versions %v of %s", want, conversation), func() bool {
		return slices.Equal(l.raised(conversation), want)
	})
}

// parked returns the parked streams. Each is a text such as "7 2+3": conversation 7 is parked from version 2 on, and 3
// later events wait.
func (l *listener) parked() (all []string) {
	l.t.Helper()
	answer, err := l.operator.ListParked(l.t.Context(), connect.NewRequest(&meshv1.ListParkedRequest{}))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range answer.Msg.GetParked() {
		line := fmt.Sprintf("%s %d+%d", strings.TrimPrefix(p.GetStream(), "conversation:"), p.GetVersion(), p.GetWaiting())
		if p.GetError() == "" || p.GetSource() != "chat" || len(p.GetRecord().GetBody()) > 0 || p.GetRecord().GetTopic() != l.topic {
			l.t.Errorf("parked: %v", p)
		}
		all = append(all, line)
	}
	return all
}

func (l *listener) awaitParked(want ...string) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("parked %q", want), func() bool { return slices.Equal(l.parked(), want) })
}

func (l *listener) resolve(conversation string, version catalog.Version, drop bool) (*meshv1.ResolveParkedResponse, error) {
	answer, err := l.operator.ResolveParked(l.t.Context(), connect.NewRequest(&meshv1.ResolveParkedRequest{Source: "chat",
		Stream: "conversation:" + conversation, Version: int64(version), Drop: drop}))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

func (l *listener) resolves(conversation string, version catalog.Version, drop bool, applied, left int64) {
	l.t.Helper()
	done, err := l.resolve(conversation, version, drop)
	if err != nil || done.GetApplied() != applied || done.GetLeft() != left || (done.GetError() != "") != (left > 0) {
		l.t.Fatalf("version %d of %s: %v %v, want %d applied, %d left", version, conversation, done, err, applied, left)
	}
}

// letters returns the dead letters of the service "notification".
func (l *listener) letters() (all []bus.DeadLetterRecord) {
	l.t.Helper()
	all, err := bus.DeadLetters(l.t.Context(), l.env.Stores.Kafka, catalog.DeadLetterTopic("notification"))
	if err != nil {
		l.t.Fatal(err)
	}
	return all
}

func TestParked_LaterEventsWaitUntilARetryAppliesAllInOrder(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	stop := l.listens()
	l.say("7", "fine", "spoil", "fine", "choke", "fine")
	l.say("8", "fine", "fine")
	l.awaitRaised("8", 1, 2) // other streams are not affected
	l.awaitParked("7 2+3")
	l.awaitRaised("7", 1)
	l.eventually("one dead letter", func() bool { return len(l.letters()) == 1 })
	if letter := l.letters()[0]; letter.Topic != "chat-events" || letter.Key != "conversation:7" || letter.Error == "" {
		t.Errorf("%+v", letter)
	}

	l.resolves("7", 2, false, 0, 4) // the event still fails
	stop()
	stop = l.listens()
	l.say("7", "after a restart")
	l.awaitParked("7 2+4")
	if _, err := l.resolve("7", 3, false); err == nil || !strings.Contains(err.Error(), "is parked at notification from version 2 onwards") {
		t.Errorf("resolving a version that waits: %v", err)
	}
	if _, err := l.resolve("8", 1, false); err == nil || !strings.Contains(err.Error(), "the stream conversation:8 of chat is not parked") {
		t.Errorf("resolving a stream that is not parked: %v", err)
	}
	l.fails.Store(false)
	l.resolves("7", 2, false, 5, 0)
	l.awaitRaised("7", 1, 2, 3, 4, 5, 6)
	l.say("7", "and on")
	l.awaitRaised("7", 1, 2, 3, 4, 5, 6, 7)
	l.awaitParked()
	stop()
}

func TestParked_DropSkipsOneEventAndStopsAtTheNextFailure(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	l.listens()
	l.say("7", "choke", "fine", "spoil", "fine")
	l.awaitParked("7 1+3")
	l.resolves("7", 1, true, 1, 2) // the first event is skipped, the second applied, the third fails
	l.awaitParked("7 3+1")
	l.say("7", "fine")
	l.awaitParked("7 3+2")
	l.resolves("7", 3, true, 2, 0)
	l.say("7", "fine")
	l.awaitRaised("7", 2, 4, 5, 6)
	l.awaitParked()
}

// Events of a parked stream arrive while an operator resolves the stream. The events must be applied once and in order,
// and none may stay parked.
func TestParked_NoEventIsLostWhileAStreamIsResolved(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	l.listens()
	l.say("7", "choke")
	l.awaitParked("7 1+0")
	l.fails.Store(false)
	const n = 200
	var commands []envelope.Command
	for range n {
		commands = append(commands, say("alice", uuid.NewString(), "7", "fine"))
	}
	l.send(commands...)
	l.eventually("some wait", func() bool { return !slices.Equal(l.parked(), []string{"7 1+0"}) })
	if done, err := l.resolve("7", 1, false); err != nil || done.GetLeft() != 0 {
		t.Fatalf("%v %v", done, err)
	}
	var want []catalog.Version
	for v := range n + 1 {
		want = append(want, catalog.Version(v)+1)
	}
	l.awaitRaised("7", want...)
	l.awaitParked()
}

func TestReplay_AppliesNoEventTwice(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	stop := l.listens()
	l.say("7", "fine", "fine", "fine")
	l.awaitRaised("7", 1, 2, 3)
	replay := func() {
		t.Helper()
		l.mu.Lock()
		var all []*message.Message
		for _, e := range l.events {
			all = append(all, e.Message(), e.Message())
		}
		slices.Reverse(all)
		l.mu.Unlock()
		if err := l.publisher.Publish(owner.ReplayTopic("notification").Name, all...); err != nil {
			t.Fatal(err)
		}
	}
	replay()
	// Events are published while the service is stopped, both on their topic and on the replay topic. The service must
	// apply each of them once.
	stop()
	l.say("8", "fine", "fine")
	l.eventually("the events", func() bool { return len(l.events) >= 5 })
	replay()
	l.listens()
	l.awaitRaised("8", 1, 2)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got := l.raised("7"); !slices.Equal(got, []catalog.Version{1, 2, 3}) {
			t.Fatalf("raised again: %v", got)
		}
		if got := l.raised("8"); !slices.Equal(got, []catalog.Version{1, 2}) {
			t.Fatalf("raised again: %v", got)
		}
	}
	l.awaitParked()
	if letters := l.letters(); len(letters) > 0 {
		t.Errorf("dead letters of a replay: %+v", letters)
	}
}

// More streams are parked than one page may contain. The pages together must contain each stream once, and always in
// the same order, even if a stream is resolved between two pages.
func TestParked_AreListedInPages(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	l.listens()
	const all = 1203
	_, err := l.env.Stores.Postgres.Exec(t.Context(), `INSERT INTO notification.parked_streams
		(source, topic, stream, position, index, version, waiting, record, error, at)
		SELECT CASE WHEN i % 3 = 0 THEN 'feed' ELSE 'chat' END, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END,
			'conversation:' || i / 2, i, 0, i, 0, '', 'requested by the test', now() FROM generate_series(1, $1::int) i`, all)
	if err != nil {
		t.Fatal(err)
	}
	list := func(size int32, between func(page int)) (keys []string, pages int) {
		t.Helper()
		for token := ""; ; {
			answer, err := l.operator.ListParked(t.Context(), connect.NewRequest(&meshv1.ListParkedRequest{PageSize: size,
				PageToken: token}))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range answer.Msg.GetParked() {
				keys = append(keys, fmt.Sprint(p.GetSource(), " ", p.GetStream(), " ", p.GetVersion()))
			}
			pages++
			if token = answer.Msg.GetNextPageToken(); token == "" {
				return keys, pages
			}
			between(pages)
		}
	}
	keys, pages := list(0, func(int) {})
	if len(keys) != all || pages != 3 {
		t.Fatalf("%d of %d in %d pages", len(keys), all, pages)
	}
	if distinct := len(slices.Compact(slices.Sorted(slices.Values(keys)))); distinct != all {
		t.Errorf("%d distinct streams", distinct)
	}
	if small, n := list(100, func(int) {}); !slices.Equal(small, keys) || n != 13 {
		t.Errorf("%d in %d pages of 100", len(small), n)
	}
	if most, n := list(100_000, func(int) {}); !slices.Equal(most, keys) || n != 3 {
		t.Errorf("%d in %d pages of more than the maximum size", len(most), n)
	}
	// The last entry of the first page is resolved before the second page is requested. The second page must still
	// begin with the next entry.
	rest, _ := list(500, func(page int) {
		if page > 1 {
			return
		}
		version := keys[499][strings.LastIndex(keys[499], " ")+1:]
		if _, err := l.env.Stores.Postgres.Exec(t.Context(),
			"DELETE FROM notification.parked_streams WHERE version = $1::text::bigint", version); err != nil {
			t.Fatal(err)
		}
	})
	if !slices.Equal(rest, keys) {
		t.Errorf("%d of %d while one is resolved", len(rest), all)
	}
	for _, token := range []string{"x", "Y2hhdAph", "!", base64.RawURLEncoding.EncodeToString([]byte("chat\na\nconversation:\x00")),
		base64.RawURLEncoding.EncodeToString([]byte("chat\na\n\xff")), strings.Repeat("A", 1<<20)} {
		var refused *connect.Error
		if _, err := l.operator.ListParked(t.Context(), connect.NewRequest(&meshv1.ListParkedRequest{PageToken: token})); !errors.As(err, &refused) ||
			refused.Code() != connect.CodeInvalidArgument || !strings.Contains(refused.Message(), "page_token") {
			t.Errorf("an invalid page token: %v", err)
		}
	}
}

//go:build integration

package owner_test

import (
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
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// listener is a service "notification" that greets for each message of chat's, and chokes on some as long as it is told
// to.
type listener struct {
	*world
	env      process.Env
	topic    string
	chokes   atomic.Bool
	log      meshv1connect.OwnerServiceClient
	operator meshv1connect.OperatorServiceClient
}

func newListener(t *testing.T, topic string) *listener {
	t.Helper()
	w := newWorld(t)
	w.start(rooms)
	l := &listener{world: w, env: w.environment("notification", w.env.Stores), topic: topic}
	l.env.Config.Peers["chat"] = "http://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(w.env.Config.Port))
	client, url := rpc.NewClient("of this test", w.env.Telemetry.Tracer()), fmt.Sprintf("http://127.0.0.1:%d", l.env.Config.Port)
	l.log, l.operator = meshv1connect.NewOwnerServiceClient(client, url), meshv1connect.NewOperatorServiceClient(client, url)
	l.chokes.Store(true)
	return l
}

func (l *listener) listens() (stop func()) {
	l.t.Helper()
	return l.startIn(l.env, func(s *owner.Service) { s.React("chat", l.topic, l.greet) })
}

func (l *listener) greet(e envelope.Event, event proto.Message) []eventlog.Append {
	appends := greet(e, event)
	switch body := event.(*chatv1.MessageSent).GetBody(); {
	case !l.chokes.Load():
	case body == "choke":
		panic("as asked")
	case body == "spoil":
		appends[0].Events[0].(*notificationv1.Raised).By = "b\x00b"
		appends[0].Actor = "b\x00b"
	}
	return appends
}

// say has messages said in a conversation, and waits until they are in the log.
func (l *listener) say(conversation string, bodies ...string) {
	l.t.Helper()
	for _, body := range bodies {
		c := say("alice", uuid.NewString(), conversation, body)
		l.send(c)
		l.outcome(c.ID, 1)
	}
}

// raised are the versions of a conversation that were greeted, in order.
func (l *listener) raised(conversation string) (versions []int64) {
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
			versions = append(versions, m.AboutVersion)
		}
	}
	return versions
}

func (l *listener) awaitRaised(conversation string, want ...int64) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("greetings for versions %v of %s", want, conversation), func() bool {
		return slices.Equal(l.raised(conversation), want)
	})
}

// parked lists what is parked: "stream version", with "!" for those with an error of their own.
func (l *listener) parked() (all []string) {
	l.t.Helper()
	answer, err := l.operator.ListParked(l.t.Context(), connect.NewRequest(&meshv1.ListParkedRequest{}))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range answer.Msg.GetParked() {
		line := fmt.Sprintf("%s %d", strings.TrimPrefix(p.GetStream(), "conversation:"), p.GetVersion())
		if p.GetError() != "" {
			line += "!"
		}
		if p.GetSource() != "chat" || len(p.GetRecord().GetBody()) > 0 || p.GetRecord().GetTopic() != l.topic {
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

func (l *listener) resolve(conversation string, version int64, drop bool) (*meshv1.ResolveParkedResponse, error) {
	answer, err := l.operator.ResolveParked(l.t.Context(), connect.NewRequest(&meshv1.ResolveParkedRequest{Source: "chat",
		Stream: "conversation:" + conversation, Version: version, Drop: drop}))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

func (l *listener) resolves(conversation string, version int64, drop bool, applied, left int64) {
	l.t.Helper()
	done, err := l.resolve(conversation, version, drop)
	if err != nil || done.GetApplied() != applied || done.GetLeft() != left || (done.GetError() != "") != (left > 0) {
		l.t.Fatalf("version %d of %s: %v %v, want %d applied, %d left", version, conversation, done, err, applied, left)
	}
}

// letters counts the dead letters of the listener.
func (l *listener) letters() (all []bus.Letter) {
	l.t.Helper()
	all, err := bus.DeadLetters(l.t.Context(), l.env.Stores.Kafka, catalog.DeadLetterTopic("notification"))
	if err != nil {
		l.t.Fatal(err)
	}
	return all
}

func TestParked_LaterOnesWaitUntilRetryAppliesAllInOrder(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	stop := l.listens()
	l.say("7", "fine", "spoil", "fine", "choke", "fine")
	l.say("8", "fine", "fine")
	l.awaitRaised("8", 1, 2) // other streams go on
	l.awaitParked("7 2!", "7 3", "7 4", "7 5")
	l.awaitRaised("7", 1)
	l.eventually("one dead letter", func() bool { return len(l.letters()) == 1 })
	if letter := l.letters()[0]; letter.Topic != "chat-events" || letter.Key != "conversation:7" || letter.Error == "" {
		t.Errorf("%+v", letter)
	}

	l.resolves("7", 2, false, 0, 4) // it chokes still
	stop()
	stop = l.listens()
	l.say("7", "after a restart")
	l.awaitParked("7 2!", "7 3", "7 4", "7 5", "7 6")
	if _, err := l.resolve("7", 3, false); err == nil || !strings.Contains(err.Error(), "waits behind version 2") {
		t.Errorf("one that waits: %v", err)
	}
	if _, err := l.resolve("8", 1, false); err == nil || !strings.Contains(err.Error(), "is not parked") {
		t.Errorf("one that is not parked: %v", err)
	}
	l.chokes.Store(false)
	l.resolves("7", 2, false, 5, 0)
	l.awaitRaised("7", 1, 2, 3, 4, 5, 6)
	l.say("7", "and on")
	l.awaitRaised("7", 1, 2, 3, 4, 5, 6, 7)
	l.awaitParked()
	stop()
}

func TestParked_DropLeavesOutOneAndStopsAtTheNext(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	l.listens()
	l.say("7", "choke", "fine", "spoil", "fine")
	l.awaitParked("7 1!", "7 2", "7 3", "7 4")
	l.resolves("7", 1, true, 1, 2) // the first is left out, the second taken, the third fails by itself
	l.awaitParked("7 3!", "7 4")
	l.say("7", "fine")
	l.awaitParked("7 3!", "7 4", "7 5")
	l.resolves("7", 3, true, 2, 0)
	l.say("7", "fine")
	l.awaitRaised("7", 2, 4, 5, 6)
	l.awaitParked()
}

// While somebody resolves, more comes in: each is taken once and in order, and none is left behind.
func TestParked_NoneIsForgottenWhileItIsResolved(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	l.listens()
	l.say("7", "choke")
	l.awaitParked("7 1!")
	l.chokes.Store(false)
	const n = 200
	var commands []envelope.Command
	for range n {
		commands = append(commands, say("alice", uuid.NewString(), "7", "fine"))
	}
	l.send(commands...)
	l.eventually("some wait", func() bool { return len(l.parked()) > 1 })
	if done, err := l.resolve("7", 1, false); err != nil || done.GetLeft() != 0 {
		t.Fatalf("%v %v", done, err)
	}
	var want []int64
	for v := range n + 1 {
		want = append(want, int64(v)+1)
	}
	l.awaitRaised("7", want...)
	l.awaitParked()
}

// What a topic lacks is read from the log, and may fail just the same; what no log has is parked by itself.
func TestParked_WhatTheTopicLacksOrTheLogDoes(t *testing.T) {
	t.Parallel()
	l := newListener(t, "study-group-events")
	l.say("7", "fine", "choke", "fine")
	l.eventually("the events", func() bool { return len(l.events) >= 3 })
	l.mu.Lock()
	third := l.events[2]
	l.mu.Unlock()
	invented := third
	invented.Version, invented.ID = 999, "invented"
	torn := third
	torn.Stream, torn.Version, torn.Body = "conversation:9", 1, []byte{0xff}
	noise := message.NewMessage("noise", []byte("noise"))
	if err := l.publisher.Publish(l.topic, third.Message(), invented.Message(), torn.Message(), noise); err != nil {
		t.Fatal(err)
	}
	l.listens()
	l.awaitParked("7 2!", "7 3", "7 999", "9 1!")
	l.eventually("dead letters of the torn one and of the noise", func() bool { return len(l.letters()) == 2 })
	l.chokes.Store(false)
	l.resolves("7", 2, false, 2, 1)
	l.awaitParked("7 999!", "9 1!")
	// What is next in the stream does not wait for what is beyond.
	l.say("7", "fine")
	l.eventually("the fourth", func() bool { return len(l.events) >= 4 })
	l.mu.Lock()
	fourth := l.events[3]
	l.mu.Unlock()
	if err := l.publisher.Publish(l.topic, fourth.Message()); err != nil {
		t.Fatal(err)
	}
	l.awaitRaised("7", 1, 2, 3, 4)
	l.resolves("7", 999, true, 0, 0) // nothing between is left out with it
	l.resolves("9", 1, true, 0, 0)
	l.say("7", "fine")
	l.eventually("the fifth", func() bool { return len(l.events) >= 5 })
	l.mu.Lock()
	fifth := l.events[4]
	l.mu.Unlock()
	if err := l.publisher.Publish(l.topic, fifth.Message()); err != nil {
		t.Fatal(err)
	}
	l.awaitRaised("7", 1, 2, 3, 4, 5)
	l.awaitParked()
}

// What a topic forgot is read from the owner's log, past what is parked of it.
func TestParked_CatchingUpGoesOnPastIt(t *testing.T) {
	t.Parallel()
	l := newListener(t, "chat-events")
	l.say("7", "fine", "choke", "fine")
	l.say("8", "fine")
	l.eventually("the events", func() bool { return len(l.events) >= 4 })
	meshtest.DeleteRecords(t, l.env.Stores.Kafka, l.topic)
	l.listens()
	l.awaitParked("7 2!", "7 3")
	l.awaitRaised("8", 1)
	l.eventually("the log is read to its end", func() bool {
		var read int64
		err := l.env.Stores.Postgres.QueryRow(t.Context(),
			"SELECT version FROM notification.readings WHERE source = 'chat' AND stream = 'topic chat-events'").Scan(&read)
		return err == nil && read >= 4
	})
	l.chokes.Store(false)
	l.resolves("7", 2, false, 2, 0)
	l.awaitRaised("7", 1, 2, 3)
}

func TestReplay_ChangesNothingThatWasTaken(t *testing.T) {
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
	// What was said while it was away reaches it by the replay, once.
	stop()
	l.say("8", "fine", "fine")
	l.eventually("the events", func() bool { return len(l.events) >= 5 })
	replay()
	l.listens()
	l.awaitRaised("8", 1, 2)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got := l.raised("7"); !slices.Equal(got, []int64{1, 2, 3}) {
			t.Fatalf("raised again: %v", got)
		}
		if got := l.raised("8"); !slices.Equal(got, []int64{1, 2}) {
			t.Fatalf("raised again: %v", got)
		}
	}
	l.awaitParked()
	if letters := l.letters(); len(letters) > 0 {
		t.Errorf("dead letters of a replay: %+v", letters)
	}
}

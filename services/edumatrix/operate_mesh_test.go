//go:build integration

package edumatrix

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner"
)

func inDatabase(t *testing.T, c config.Config, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Postgres.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if done, err := conn.Exec(t.Context(), statement); err != nil || done.RowsAffected() == 0 {
		t.Fatalf("%s: %v %v", statement, done, err)
	}
}

func TestRebuild_WhileTheMeshIsTalking(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o := operatorOf(t, c)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	sent := make([]int, 3)
	talkers := make([]*talks, len(sent))
	for i := range sent {
		talkers[i] = talking(t, c)
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := talkers[i].alice.Command(context.Background(), "chat.send_message", map[string]string{
					"conversation_id": talkers[i].conversation(), "body": fmt.Sprint("message ", sent[i])})
				if err != nil {
					t.Error(err)
					return
				}
				sent[i]++
			}
		})
	}
	for range 3 {
		if out := o.does("rebuild", "chat", "conversations"); !strings.Contains(out, "equal, row for row") ||
			!strings.Contains(out, "messages") {
			t.Errorf("%s", out)
		}
	}
	close(stop)
	wait.Wait()
	// The new tables must contain messages that are sent after the rebuild. This loop checks only the newest message of
	// each conversation, because the rebuild below compares all rows with the log.
	for _, x := range talkers {
		x.send("after")
		var page struct {
			Messages []struct {
				Body string `json:"body"`
			} `json:"messages"`
		}
		if err := x.alice.Query(t.Context(), "chat.history", map[string]any{"conversation_id": x.conversation(), "limit": 1}, &page); err != nil {
			t.Fatal(err)
		}
		if len(page.Messages) != 1 || page.Messages[0].Body != "after" {
			t.Errorf("%+v", page)
		}
	}

	inDatabase(t, c, "UPDATE chat.messages SET body = 'damaged' WHERE conversation_id = '"+talkers[0].conversation()+"' AND version = 2")
	status, out, complaints := o.run("rebuild", "chat")
	if status != statusDiffers || !strings.Contains(complaints, "1 rows differed from the log") {
		t.Errorf("status %d\n%s%s", status, out, complaints)
	}
	for _, want := range []string{"--- messages, as it was", `"body": "damaged"`, `"body": "message 0"`} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing from\n%s", want, out)
		}
	}
	if !strings.Contains(complaints, "build: ") || !strings.Contains(complaints, "swap: ") {
		t.Errorf("no progress: %s", complaints)
	}
	o.does("rebuild", "chat")
	for _, test := range []struct {
		args     []string
		status   int
		wantText string
	}{
		{[]string{"rebuild"}, 2, "SERVICE"},
		{[]string{"rebuild", "gateway"}, 1, "owns no log"},
		{[]string{"rebuild", "chat", "nothing"}, 1, "it has conversations"},
		{[]string{"rebuild", "feed"}, 1, "no projections to rebuild"},
	} {
		if status, _, complaints := o.run(test.args...); status != test.status || !strings.Contains(complaints, test.wantText) {
			t.Errorf("%v: status %d, %s", test.args, status, complaints)
		}
	}
}

// TestOperator_IsNotReachableFromOutside checks that a user cannot call the methods for operators: a service does not
// accept a user's token for them, and the gateway does not have them.
func TestOperator_IsNotReachableFromOutside(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	token, err := auth.Mint(c.JWTSecret, auth.User{ID: "eve"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	status := func(url string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		return answer.StatusCode
	}
	for _, method := range []string{"Rebuild", "ResolveParked", "DropDeadLetter", "ListParked", "ListDropped", "Describe"} {
		path := "/edumatrix.mesh.v1.OperatorService/" + method
		if got := status(c.Peers["chat"] + path); got != http.StatusUnauthorized {
			t.Errorf("%s at the inner listener, with a user's token: %d", method, got)
		}
		for _, prefix := range []string{"", "/api"} {
			if got := status(fmt.Sprintf("http://127.0.0.1:%d%s%s", c.Port, prefix, path)); got < 400 || got >= 500 {
				t.Errorf("%s%s at the gateway: %d", prefix, path, got)
			}
		}
	}
}

// letters returns the dead letters that `edumatrix dead-letters list --json` prints.
func (o operator) letters(flags ...string) (all []deadLetter) {
	o.t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(o.does(append([]string{"dead-letters", "list", "--json"}, flags...)...)), "\n") {
		if line == "" {
			continue
		}
		var l deadLetter
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			o.t.Fatalf("%s: %v", line, err)
		}
		all = append(all, l)
	}
	return all
}

func (o operator) fails(wantText string, args ...string) {
	o.t.Helper()
	if status, out, complaints := o.run(args...); status != 1 || !strings.Contains(complaints, wantText) {
		o.t.Errorf("%v: status %d, want 1 and %q\n%s%s", args, status, wantText, out, complaints)
	}
}

func TestDeadLetters_OfACommandAreShownAndDropped(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o, x := operatorOf(t, c), talking(t, c)
	if out := o.does("dead-letters", "list"); !strings.Contains(out, "no dead letters") {
		t.Errorf("%s", out)
	}
	publisher, err := bus.NewPublisher(c.Kafka, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	torn := envelope.Command{ID: uuid.NewString(), Type: "chat.send_message", Stream: x.stream, Actor: "mallory", Time: time.Now(),
		Body: []byte{0xff, 0xff}}
	if err := publisher.Publish(catalog.CommandTopic("chat"), torn.Message()); err != nil {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "a dead letter", func() bool { return len(o.letters()) == 1 })
	l := o.letters("--service", "chat")[0]
	if l.State != stateFailed || l.Message != torn.ID || l.Key != x.stream || l.Topic != "chat-commands" || l.Error == "" ||
		l.Problem == "" || time.Since(l.Time) > time.Minute {
		t.Errorf("%+v", l)
	}
	if out := o.does("dead-letters", "show", torn.ID); !strings.Contains(out, l.ID) || !strings.Contains(out, "final") || !strings.Contains(out, "ffff") {
		t.Errorf("%s", out)
	}
	o.fails("is final", "dead-letters", "retry", l.ID)
	o.does("dead-letters", "drop", l.ID)
	if left := o.letters(); len(left) > 0 {
		t.Errorf("%+v", left)
	}
	if all := o.letters("--all"); len(all) != 1 || all[0].State != stateDone {
		t.Errorf("%+v", all)
	}
	o.fails("resolved already", "dead-letters", "drop", l.ID)
	o.fails("no dead letter", "dead-letters", "show", "chat/0/99")
}

// A consumer gets a damaged record of an event, and cannot read this record. The later events of the stream must wait,
// and other streams must continue. A retry must read the event from the log, where the event is intact, and apply this
// event and the waiting events. If the log does not contain the event, only dropping it succeeds.
func TestDeadLetters_OfAnEventAreRetriedAndDropped(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o := operatorOf(t, c)
	publisher, err := bus.NewPublisher(c.Kafka, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	// The id of a direct conversation is derived from its users, so its stream is known in advance. The first event of
	// the conversation will be the first event of chat's log, so the position of this event is known too. The test can
	// therefore publish a damaged record of this event before the event exists.
	alice, bob := "alice-"+uuid.NewString()[:8], "bob-"+uuid.NewString()[:8]
	poison := func(stream string, position catalog.Position) {
		t.Helper()
		m := envelope.Event{ID: uuid.NewString(), Type: "chat.conversation_started", Source: "chat", Stream: stream, Version: 1,
			Position: position, Time: time.Now(), Class: 1, Body: []byte{0xff}}.Message()
		if err := publisher.Publish("chat-events", m); err != nil {
			t.Fatal(err)
		}
	}
	stream, other := "conversation:"+catalog.PairID(alice, bob), "conversation:"+uuid.NewString()
	poison(stream, 1)
	meshtest.Eventually(t, "the stream is parked", func() bool { all := o.letters(); return len(all) == 1 && all[0].State == stateParked })
	connection := dial(t, c, alice, nil)
	// The gateway has already accepted the damaged record as the first event of the conversation. Therefore it ignores
	// the intact record as a repeat, and delivers no outcome to the client. Ignore the error.
	_, _ = connection.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": bob})
	for range 3 {
		if _, err := connection.Command(t.Context(), "chat.send_message", map[string]string{
			"conversation_id": strings.TrimPrefix(stream, "conversation:"), "body": "waits"}); err != nil {
			t.Fatal(err)
		}
	}
	meshtest.Eventually(t, "three events of the stream wait", func() bool { all := o.letters(); return len(all) == 1 && all[0].Waiting == 3 })
	l := o.letters()[0]
	if l.Service != "notification" || l.Stream != stream || l.Version != 1 || l.Topic != "chat-events" {
		t.Errorf("%+v", l)
	}
	if out := o.does("dead-letters", "list"); !strings.Contains(out, "parked, 3 wait") {
		t.Errorf("%s", out)
	}
	// Another conversation must not be delayed.
	carol := "carol-" + uuid.NewString()[:8]
	if _, err := connection.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": carol}); err != nil {
		t.Fatal(err)
	}
	raised := func(user string) int {
		_, out, _ := o.run("log", "show", "notifications:"+user, "--json")
		return strings.Count(out, `"notification.raised"`)
	}
	meshtest.Eventually(t, "carol is notified", func() bool { return raised(carol) == 1 })
	if n := raised(bob); n != 0 {
		t.Fatalf("bob was notified %d times", n)
	}
	if out := o.does("dead-letters", "retry", l.ID); !strings.Contains(out, "4 events of "+stream+" applied") {
		t.Errorf("%s", out)
	}
	meshtest.Eventually(t, "bob is notified", func() bool { return raised(bob) == 1 })
	if left := o.letters(); len(left) > 0 {
		t.Errorf("%+v", left)
	}

	poison(other, 1_000_000)
	meshtest.Eventually(t, "another event is parked", func() bool { return len(o.letters()) == 1 })
	l = o.letters()[0]
	o.fails("no version 1", "dead-letters", "retry", l.ID)
	if out := o.does("dead-letters", "drop", l.Message); !strings.Contains(out, "left out") {
		t.Errorf("%s", out)
	}
	if left := o.letters(); len(left) > 0 {
		t.Errorf("%+v", left)
	}
	o.fails("resolved already", "dead-letters", "retry", l.ID)
}

// consumed returns the number of records of a topic that the consumer group of a service has consumed, and the number
// of records in the topic.
func consumed(t *testing.T, c config.Config, service, topic string) (taken, there int64) {
	t.Helper()
	admin, name := meshtest.KafkaAdmin(t, c.Kafka), c.Kafka.Topic(topic)
	offsets, err := admin.FetchOffsets(t.Context(), c.Kafka.Topic(service+"."+topic))
	if err != nil {
		t.Fatal(err)
	}
	ends, err := admin.ListEndOffsets(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for p, end := range ends[name] {
		there += end.Offset
		if at, ok := offsets.Lookup(name, p); ok && at.At > 0 {
			taken += at.At
		}
	}
	return taken, there
}

func TestReplay_ReachesOneConsumerAndChangesNothing(t *testing.T) {
	t.Parallel()
	c, _ := startTogether(t)
	o := operatorOf(t, c)
	var users, before []string
	x := talking(t, c)
	show := func(user string) string { return o.does("log", "show", "notifications:"+user) }
	for range 5 {
		user := "user-" + uuid.NewString()[:8]
		users = append(users, user)
		if _, err := x.alice.Command(t.Context(), "chat.start_direct", map[string]string{"user_id": user}); err != nil {
			t.Fatal(err)
		}
	}
	x.send("one")
	for _, user := range users {
		meshtest.Eventually(t, user+" is notified", func() bool { status, _, _ := o.run("log", "show", "notifications:"+user); return status == 0 })
		before = append(before, show(user))
	}
	topic := owner.ReplayTopic("notification").Name
	replayed := func(want int64, args ...string) {
		t.Helper()
		_, had := consumed(t, c, "notification", topic)
		out := o.does(append([]string{"replay", "--owner", "chat", "--to", "notification"}, args...)...)
		if !strings.HasPrefix(out, fmt.Sprintf("%d events of chat sent to notification", want)) {
			t.Errorf("%v: %s", args, out)
		}
		meshtest.Eventually(t, "all records are consumed", func() bool {
			taken, there := consumed(t, c, "notification", topic)
			return there == had+want && taken == there
		})
	}
	replayed(7)
	replayed(7, "--topic", "chat-events", "--since", "1h")
	replayed(2, "--stream", x.stream)
	replayed(0, "--until", "1h")
	for i, user := range users {
		if after := show(user); after != before[i] {
			t.Errorf("%s: before\n%s\nafter\n%s", user, before[i], after)
		}
	}
	if left := o.letters(); len(left) > 0 {
		t.Errorf("%+v", left)
	}
	// The gateways read the topics of the catalog. The topic of the replay must not be one of them, so that clients do
	// not get the replayed events.
	declared, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(declared.Topics(""), func(d catalog.Topic) bool { return d.Name == topic }) {
		t.Errorf("%s is a topic of the catalog", topic)
	}
	o.fails("consumes no events of other services", "replay", "--owner", "chat", "--to", "feed")
	o.fails("consumes only chat-events of chat", "replay", "--owner", "chat", "--topic", "file-events", "--to", "notification")
	o.fails("owns no log", "replay", "--owner", "presence", "--to", "notification")
	if status, _, complaints := o.run("replay", "--owner", "chat", "--to", "notification", "--since", "yesterday"); status != 2 {
		t.Errorf("status %d: %s", status, complaints)
	}
}

//go:build integration

package notification_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	notificationv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"
	"github.com/edumatrix/interlinked/services/notification"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// world is the environment of a notification service: a broker, a database, and a stub of chat.
type world struct {
	t         *testing.T
	env       process.Env
	publisher *bus.Publisher
}

func newWorld(t *testing.T) *world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	declared, err := catalog.Load()
	must(err)
	kafka := meshtest.EmbeddedKafka(t)
	_, err = kafka.EnsureTopics(t.Context(), declared.Topics(""))
	must(err)
	pool, err := backend.Postgres{URL: meshtest.Postgres(t)}.Open(t.Context())
	must(err)
	t.Cleanup(pool.Close)
	traces, err := telemetry.Start(t.Context(), telemetry.Options{Service: "notification"})
	must(err)
	publisher, err := bus.NewPublisher(kafka, nil)
	must(err)
	t.Cleanup(func() { _ = publisher.Close() })
	settings := config.Config{Service: "notification", Host: "127.0.0.1", Port: meshtest.FreePort(t),
		ServiceSecret: "of this test", Peers: map[string]string{}}
	chat := http.NewServeMux()
	chat.Handle(meshv1connect.NewOwnerServiceHandler(&emptyLog{}))
	server := httptest.NewServer(chat)
	t.Cleanup(server.Close)
	settings.Peers["chat"] = server.URL
	return &world{t: t, publisher: publisher,
		env: process.Env{Config: settings, Stores: &backend.Stores{Postgres: pool, Kafka: kafka}, Catalog: declared,
			Telemetry: traces, Log: slog.New(slog.DiscardHandler)}}
}

// emptyLog is a stub of chat whose log contains no events.
type emptyLog struct {
	meshv1connect.UnimplementedOwnerServiceHandler
}

func (*emptyLog) ReadLog(context.Context, *connect.Request[meshv1.ReadLogRequest]) (
	*connect.Response[meshv1.ReadLogResponse], error) {
	return connect.NewResponse(&meshv1.ReadLogResponse{}), nil
}

// run runs the service until the returned function is called.
func (w *world) run() (stop func()) {
	w.t.Helper()
	env, ready := w.env, make(chan struct{})
	env.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- notification.Run(ctx, env) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		w.t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}
}

// publish publishes events of chat, as its relay does.
func (w *world) publish(events ...envelope.Event) {
	w.t.Helper()
	for _, e := range events {
		if err := w.publisher.Publish("chat-events", e.Message()); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) event(version catalog.Version, actor string, m proto.Message) envelope.Event {
	w.t.Helper()
	declared, _ := w.env.Catalog.EventOf(m)
	body, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	place := declared.Place(m, catalog.Origin{Actor: actor})
	return envelope.Event{ID: fmt.Sprint("event-", version), Type: declared.Name, Source: "chat", Stream: place.Stream,
		Version: version, Position: catalog.Position(version), Before: catalog.Position(version - 1), Time: time.Now(), Actor: actor, Class: declared.Class,
		Rooms: place.Rooms, Body: body}
}

// raised returns all notifications in the log of the notification service, by recipient.
func (w *world) raised() map[string][]*notificationv1.Raised {
	w.t.Helper()
	log, err := eventlog.Open(w.t.Context(), eventlog.Options{Owner: "notification", Pool: w.env.Stores.Postgres,
		Catalog: w.env.Catalog, Log: w.env.Log})
	if err != nil {
		w.t.Fatal(err)
	}
	page, err := log.Read(w.t.Context(), eventlog.Query{})
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string][]*notificationv1.Raised{}
	for _, e := range page.Events {
		m := &notificationv1.Raised{}
		if err := proto.Unmarshal(e.Body, m); err != nil {
			w.t.Fatal(err)
		}
		to := m.GetRecipientId()
		if e.Stream != "notifications:"+to || e.Actor != m.GetBy() || e.Version != catalog.Version(len(all[to]))+1 {
			w.t.Fatalf("the event %+v contains %v", e, m)
		}
		all[to] = append(all[to], m)
	}
	return all
}

// read waits until the service has consumed chat's events up to a position. In this test a position equals the version
// of the conversation.
func (w *world) read(stream string, version catalog.Version) {
	w.t.Helper()
	var have catalog.Version
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		err := w.env.Stores.Postgres.QueryRow(w.t.Context(), `SELECT coalesce(max(position), 0) FROM notification.checkpoints
			WHERE source = 'chat'`).Scan(&have)
		if err != nil {
			w.t.Fatal(err)
		}
		if have == version {
			return
		}
	}
	w.t.Fatalf("%s is consumed up to version %d, not %d", stream, have, version)
}

// Users are added to a conversation by other users. The topic contains each event several times, and the service
// restarts. A user must get exactly one notification each time they are added.
func TestRun_RaisesEachNotificationOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.run()
	events := []envelope.Event{
		w.event(1, "ann", &chatv1.ConversationStarted{ConversationId: "7", UserIds: []string{"ann", "bob", "cid"}}),
		w.event(2, "bob", &chatv1.MessageSent{ConversationId: "7", MessageId: "m", Body: "hi"}),
		w.event(3, "bob", &chatv1.MemberAdded{ConversationId: "7", UserId: "dan"}),
	}
	w.publish(events...)
	w.publish(events...)
	w.read("conversation:7", 3)
	first := w.raised()
	stop()

	stop = w.run()
	defer stop()
	w.publish(events...)
	w.publish(w.event(4, "ann", &chatv1.MemberLeft{ConversationId: "7", UserId: "dan"}),
		w.event(5, "cid", &chatv1.MemberAdded{ConversationId: "7", UserId: "dan"}))
	w.read("conversation:7", 5)
	last := w.raised()
	if len(last) != 3 || len(last["bob"]) != 1 || len(last["cid"]) != 1 || len(last["dan"]) != 2 {
		t.Fatalf("raised: %v", last)
	}
	ids := map[string]bool{}
	for recipient, all := range last {
		for i, m := range all {
			ids[m.GetNotificationId()] = true
			if m.GetAboutStream() != "conversation:7" ||
				m.GetReason() != notificationv1.Reason_REASON_ADDED_TO_CONVERSATION {
				t.Errorf("%s was notified: %v", recipient, m)
			}
			if i < len(first[recipient]) && !proto.Equal(first[recipient][i], m) {
				t.Errorf("after the restart %v has become %v", first[recipient][i], m)
			}
		}
	}
	if len(ids) != 4 || last["dan"][0].GetBy() != "bob" || last["dan"][0].GetAboutVersion() != 3 ||
		last["dan"][1].GetBy() != "cid" || last["dan"][1].GetAboutVersion() != 5 {
		t.Errorf("raised: %v", last)
	}
}

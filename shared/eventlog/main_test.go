package eventlog

import (
	"errors"
	"log/slog"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var database, pool, during, named = pgtest.Database, pgtest.Pool, pgtest.During, pgtest.Named

var loaded = sync.OnceValues(catalog.Load)

// instance opens the log of chat in a database without running it. A test may open several instances of one log.
func instance(t testing.TB, url string, change ...func(*Options)) *Log {
	t.Helper()
	c, err := loaded()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Owner: "chat", Pool: pool(t, url), Catalog: c, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func running(t testing.TB, url string, change ...func(*Options)) *Log {
	t.Helper()
	l := instance(t, url, change...)
	during(t, l.Run)
	return l
}

func fresh(t testing.TB) *Log {
	t.Helper()
	return running(t, database(t))
}

func started(conversation string, users ...string) proto.Message {
	return &chatv1.ConversationStarted{ConversationId: conversation, UserIds: users, Title: "title of " + conversation}
}

func sent(conversation, id, body string) proto.Message {
	return &chatv1.MessageSent{ConversationId: conversation, MessageId: id, Body: body}
}

// said returns a write with one command, by which alice sends one message.
func said(conversation, commandID string) Write {
	return Write{Stream: "conversation:" + conversation, Expected: AnyVersion, Commands: []Decided{{
		Actor: "alice", CommandID: commandID, Type: "chat.send_message",
		Events: []proto.Message{sent(conversation, commandID, "hello "+commandID)},
	}}}
}

func commit(t testing.TB, l *Log, w Write) Committed {
	t.Helper()
	c, err := l.Commit(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func failsAs[T error](t testing.TB, err error) T {
	t.Helper()
	var want T
	if !errors.As(err, &want) {
		t.Fatalf("got %v (%T), want a %T", err, err, want)
	}
	return want
}

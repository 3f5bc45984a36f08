// Package logtest opens logs of chat on an embedded PostgreSQL server, for tests of packages that read or relay a log.
package logtest

import (
	"log/slog"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
)

var loaded = sync.OnceValues(catalog.Load)

// Instance opens the chat log of a database, as one of possibly many instances, without running it.
func Instance(t testing.TB, url string, change ...func(*eventlog.Options)) *eventlog.Log {
	t.Helper()
	c, err := loaded()
	if err != nil {
		t.Fatal(err)
	}
	o := eventlog.Options{Owner: "chat", Pool: pgtest.Pool(t, url), Catalog: c, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	l, err := eventlog.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func Running(t testing.TB, url string, change ...func(*eventlog.Options)) *eventlog.Log {
	t.Helper()
	l := Instance(t, url, change...)
	pgtest.During(t, l.Run)
	return l
}

func Fresh(t testing.TB) *eventlog.Log {
	t.Helper()
	return Running(t, pgtest.Database(t))
}

func Sent(conversation, id, body string) proto.Message {
	return &chatv1.MessageSent{ConversationId: conversation, MessageId: id, Body: body}
}

// Said returns a write with one command, by which alice sends one message.
func Said(conversation, commandID string) eventlog.Write {
	return eventlog.Write{Stream: "conversation:" + conversation, Expected: eventlog.AnyVersion, Commands: []eventlog.Decided{{
		Actor: "alice", CommandID: commandID, Type: "chat.send_message",
		Events: []proto.Message{Sent(conversation, commandID, "hello "+commandID)},
	}}}
}

func Commit(t testing.TB, l *eventlog.Log, w eventlog.Write) eventlog.Committed {
	t.Helper()
	c, err := l.Commit(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

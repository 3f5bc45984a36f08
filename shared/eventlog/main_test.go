package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

// server is one PostgreSQL for all tests of the package.
var server struct {
	sync.Once
	dir string
	pg  *embedded.Postgres
	err error
}

func startServer() error {
	server.Do(func() {
		if server.dir, server.err = os.MkdirTemp("", "eventlog-test-"); server.err != nil {
			return
		}
		// It may run under another uid.
		if server.err = os.Chmod(server.dir, 0o755); server.err == nil {
			server.pg, server.err = embedded.StartPostgres(context.Background(), embedded.PostgresOptions{Dir: server.dir})
		}
	})
	return server.err
}

func TestMain(m *testing.M) {
	code := m.Run()
	if server.pg != nil {
		_ = server.pg.Stop()
	}
	_ = os.RemoveAll(server.dir)
	os.Exit(code)
}

var databases atomic.Int64

// database makes a fresh one.
func database(t testing.TB) string {
	t.Helper()
	if err := startServer(); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	name := fmt.Sprintf("eventlog_%d", databases.Add(1))
	if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name+""); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(server.pg.URL(), "/edu_matrix_db", "/"+name, 1)
}

var loaded = sync.OnceValues(catalog.Load)

func pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// instance opens the chat log of a database, as one of possibly many instances, without running it.
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

// during runs something until the test ends.
func during(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
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

// said is a command with one message, by alice.
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

// Package logtest opens logs of chat on an embedded PostgreSQL server, for tests of the packages that read and relay them.
package logtest

import (
	"context"
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
	"github.com/edumatrix/interlinked/shared/eventlog"
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

// Main runs the tests of a package and stops the server. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if server.pg != nil {
		_ = server.pg.Stop()
	}
	_ = os.RemoveAll(server.dir)
	os.Exit(code)
}

var databases atomic.Int64

// Database makes a fresh one.
func Database(t testing.TB) string {
	t.Helper()
	if err := startServer(); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	name := fmt.Sprintf("log_%d", databases.Add(1))
	if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name+""); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(server.pg.URL(), "/edu_matrix_db", "/"+name, 1)
}

var loaded = sync.OnceValues(catalog.Load)

func Pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Instance opens the chat log of a database, as one of possibly many instances, without running it.
func Instance(t testing.TB, url string, change ...func(*eventlog.Options)) *eventlog.Log {
	t.Helper()
	c, err := loaded()
	if err != nil {
		t.Fatal(err)
	}
	o := eventlog.Options{Owner: "chat", Pool: Pool(t, url), Catalog: c, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	l, err := eventlog.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// During runs something until the test ends.
func During(t testing.TB, run func(context.Context) error) {
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

func Running(t testing.TB, url string, change ...func(*eventlog.Options)) *eventlog.Log {
	t.Helper()
	l := Instance(t, url, change...)
	During(t, l.Run)
	return l
}

func Fresh(t testing.TB) *eventlog.Log {
	t.Helper()
	return Running(t, Database(t))
}

func Sent(conversation, id, body string) proto.Message {
	return &chatv1.MessageSent{ConversationId: conversation, MessageId: id, Body: body}
}

// Said is a command with one message, by alice.
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

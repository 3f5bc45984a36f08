//go:build integration

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

const millionMessages = 1_000_000

// sqlMillion contains statements that add $2 messages to the stream $1, after its newest event, both in the log and in
// the projection. The last statement marks the messages as relayed, so that the relay does not publish them.
var sqlMillion = []string{
	`INSERT INTO chat.events (position, stream, version, id, type, topic, actor, cause, command_type, correlation, time,
  class, rooms, subject, answers, traceparent, body, personal)
SELECT h.position + n, e.stream, e.version + n, gen_random_uuid(), e.type, e.topic, e.actor, '', '', '', e.time, e.class,
  e.rooms, 'm' || n, false, '', e.body, e.personal
FROM (SELECT max(position) AS position FROM chat.events) h,
  (SELECT * FROM chat.events WHERE stream = $1 ORDER BY version DESC LIMIT 1) e, generate_series(1, $2) n`,
	`INSERT INTO chat.event_rooms (room, position)
SELECT $1, position FROM chat.events WHERE stream = $1 ON CONFLICT DO NOTHING`,
	`INSERT INTO chat.messages (conversation_id, version, message_id, author, body, sent_at)
SELECT split_part(stream, ':', 2), version, subject, actor, 'A message of the usual length, as they are written all day long.',
  time FROM chat.events WHERE stream = $1 AND type = 'chat.message_sent' ON CONFLICT DO NOTHING`,
	`UPDATE chat.conversations c SET version = e.version, position = e.position
FROM (SELECT version, position FROM chat.events WHERE stream = $1 ORDER BY version DESC LIMIT 1) e
WHERE 'conversation:' || c.conversation_id = $1`,
	`UPDATE chat.conversation_members m SET period = c.position >> 8 FROM chat.conversations c
WHERE c.conversation_id = m.conversation_id AND NOT m.large AND 'conversation:' || c.conversation_id = $1`,
	`UPDATE chat.projections SET position = (SELECT max(position) FROM chat.events)`,
	`UPDATE chat.relay SET position = (SELECT max(position) FROM chat.events)`,
}

// BenchmarkHostile measures how long the actions of ordinary users take, with and without a hostile user. The hostile
// user has left a conversation of a million messages, and queries the history of this conversation as fast as the
// gateway allows. The benchmark prints the same figures as the gateway's BenchmarkHostile, but for a whole mesh with
// its database.
func BenchmarkHostile(b *testing.B) {
	b.Run("history", func(b *testing.B) {
		database := meshtest.NewPostgresServer(b).Database(b)
		m := embedded(b, "DATABASE_URL="+database)
		alice := m.connect(b, "alice", 0)
		stream := alice.do("chat.start_group", map[string]any{"title": "large", "user_ids": []string{"eve"}}).Stream
		conversation := strings.TrimPrefix(stream, "conversation:")
		sent := alice.do("chat.send_message", map[string]any{"conversation_id": conversation, "body": "first"})
		alice.awaitVersion(stream, sent.Version)
		var newest history
		if err := alice.ask("chat.history", map[string]any{"conversation_id": conversation}, &newest); err != nil {
			b.Fatal(err)
		}
		m.processes[0].Stop(b)
		fillMillion(b, database, stream)
		m.processes[0].Start(b)
		m.ready(b)
		eve := m.connect(b, "eve", 0)
		left := eve.do("chat.leave", map[string]any{"conversation_id": conversation})
		if left.Version < millionMessages {
			b.Fatalf("the conversation has %d events", left.Version)
		}
		var page history
		if err := eve.ask("chat.history", map[string]any{"conversation_id": conversation, "limit": 200}, &page); err != nil {
			b.Fatal(err)
		} else if len(page.Messages) != 200 {
			b.Fatalf("the user who left reads %d messages", len(page.Messages))
		}
		eve.Close()

		m.ordinary(b, 50) // warm up
		var quiet, beside meshtest.Latencies
		answered := 0
		b.ResetTimer()
		for range b.N {
			for range 6 {
				quiet.Add(m.ordinary(b, 100))
				end := m.beHostile(b, conversation)
				time.Sleep(500 * time.Millisecond) // let the hostile user connect
				beside.Add(m.ordinary(b, 100))
				answered += end()
				time.Sleep(200 * time.Millisecond) // let the hostile user disconnect
			}
		}
		meshtest.ReportBeside(b, quiet, beside)
		b.Logf("the hostile user got %d pages of history", answered)
	})
}

func fillMillion(b *testing.B, database, stream string) {
	b.Helper()
	begin := time.Now()
	db, err := pgx.Connect(b.Context(), database)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close(context.Background()) }()
	for _, statement := range sqlMillion {
		arguments := []any{stream, millionMessages}[:strings.Count(statement, "$2")+min(1, strings.Count(statement, "$1"))]
		if _, err := db.Exec(b.Context(), statement, arguments...); err != nil {
			b.Fatalf("%s: %v", statement, err)
		}
	}
	if _, err := db.Exec(b.Context(), "VACUUM ANALYZE"); err != nil {
		b.Fatal(err)
	}
	b.Logf("a million messages were loaded in %v", time.Since(begin).Round(time.Second))
}

// ordinary measures the actions of ordinary users, n times: one user sends a message and another gets it. Every second
// time, a third user connects.
func (m *mesh) ordinary(b *testing.B, n int) (l meshtest.Latencies) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	dial := func(user string, onEvent func(client.Event)) *client.Client {
		c, err := client.Dial(ctx, client.Options{URL: m.socket(0), Token: mint(b, user, time.Hour), OnEvent: onEvent})
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	got := make(chan time.Time, 2*n)
	carol := dial("carol", nil)
	defer carol.Close()
	dave := dial("dave", func(e client.Event) {
		if e.Type == "chat.message_sent" {
			got <- time.Now()
		}
	})
	defer dave.Close()
	started, err := carol.Command(ctx, "chat.start_direct", map[string]any{"user_id": "dave"})
	if err != nil {
		b.Fatal(err)
	}
	message := map[string]any{"conversation_id": conversationOf(started), "body": "hello"}
	for i := range n {
		began := time.Now()
		if _, err := carol.Command(ctx, "chat.send_message", message); err != nil {
			b.Fatal(err)
		}
		l.Command = append(l.Command, time.Since(began))
		select {
		case at := <-got:
			l.Deliver = append(l.Deliver, at.Sub(began))
		case <-ctx.Done():
			b.Fatal("dave got no event")
		}
		if i%2 == 0 {
			began := time.Now()
			c := dial(fmt.Sprint("u", i), nil)
			l.Connect = append(l.Connect, time.Since(began))
			c.Close()
		}
	}
	return l
}

// beHostile starts a process that acts as the hostile user. The returned function ends the process, and returns the
// number of pages that the hostile user got.
func (m *mesh) beHostile(b *testing.B, conversation string) (end func() int) {
	b.Helper()
	c := exec.Command(os.Args[0])
	var printed strings.Builder
	c.Stdout = &printed
	c.Env = append(os.Environ(), "E2E_HOSTILE="+conversation, "E2E_HOSTILE_URL="+m.socket(0),
		"E2E_HOSTILE_TOKEN="+mint(b, "eve", time.Hour))
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	return func() (pages int) {
		_ = in.Close()
		_ = c.Wait()
		if _, err := fmt.Sscan(printed.String(), &pages); err != nil {
			b.Fatalf("the hostile user printed %q: %v", printed.String(), err)
		}
		return pages
	}
}

// hostile queries pages of a conversation's history over eight connections until its standard input is closed. It keeps
// as many queries in flight as one user may have. Then it prints the number of pages that it got.
func hostile(conversation string) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // returns when standard input is closed
		cancel()
	}()
	var asking sync.WaitGroup
	var mu sync.Mutex
	pages := 0
	for range 8 {
		c, err := client.Dial(ctx, client.Options{URL: os.Getenv("E2E_HOSTILE_URL"), Token: os.Getenv("E2E_HOSTILE_TOKEN")})
		if err != nil {
			continue
		}
		for range 8 {
			asking.Go(func() {
				for ctx.Err() == nil {
					var page history
					err := c.Query(ctx, "chat.history", map[string]any{"conversation_id": conversation, "limit": 200,
						"before": 1 + rand.IntN(millionMessages)}, &page)
					if err != nil {
						time.Sleep(10 * time.Millisecond)
						continue
					}
					mu.Lock()
					pages++
					mu.Unlock()
				}
			})
		}
	}
	asking.Wait()
	fmt.Println(pages)
}

//go:build integration

package query_test

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// BenchmarkSearchSize measures searches in a conversation of a million messages, of a user with 10,000 conversations,
// and of a user in one small conversation, and the same with a hundredth of the messages. It also prints the time in
// which the projections applied the events, and the sizes of their tables. The environment variable SIZE_MESSAGES
// sets another number of messages.
func BenchmarkSearchSize(b *testing.B) {
	messages := 1_000_000
	if given := os.Getenv("SIZE_MESSAGES"); given != "" {
		var err error
		if messages, err = strconv.Atoi(given); err != nil || messages < 100_000 {
			b.Fatal("SIZE_MESSAGES must be a number of at least 100,000")
		}
	}
	server := meshtest.NewPostgresServerWith(b, 1<<30, nil)
	small := searchesOf(b, server.Database(b), messages/100, 100)
	large := searchesOf(b, server.Database(b), messages, 10_000)
	meshtest.LogSizes(b, messages/100, messages, small, large)
	b.ReportMetric(0, "ns/op")
}

// searchesOf loads a conversation with some messages, and other conversations with ten messages each, and measures
// searches.
func searchesOf(b *testing.B, database string, messages, conversations int) (all []meshtest.Measured) {
	b.Helper()
	l := loader{b: b, random: rand.New(rand.NewPCG(1, 2)), at: time.Now().Add(-time.Hour).Truncate(time.Microsecond)}
	c, err := catalog.Load()
	must(b, err)
	l.catalog = c
	pool, err := backend.Postgres{URL: database}.Open(b.Context())
	must(b, err)
	b.Cleanup(pool.Close)
	log, err := eventlog.Open(b.Context(), eventlog.Options{Owner: "chat", Pool: pool, Catalog: c,
		Migrations: store.Migrations(), Log: slog.New(slog.DiscardHandler)})
	must(b, err)
	l.start("tiny", "tiny")
	for range 10 {
		l.send("tiny", "homework "+l.text())
	}
	l.start("big", "member")
	for n := 1; n <= messages; n++ {
		words := []string{"homework ", "maths "}[n%2] + l.text()
		switch {
		case n%(messages/5) == 7:
			words += " needle"
		case n%1000 == 8:
			words += " the final exam"
		case n%3 == 0:
			words += " exam is not final"
		}
		l.send("big", words)
	}
	for n := range conversations {
		id := fmt.Sprint("c", n)
		l.start(id, "heavy")
		for i := range 10 {
			words := l.text()
			if i == 5 {
				words += " homework"
			}
			if i == 3 && n == conversations/2 {
				words += " needle"
			}
			l.send(id, words)
		}
	}
	for _, p := range []*projection.Projection{store.DeclareConversations(), store.DeclareSearch()} {
		begin := time.Now()
		for at := 0; at < len(l.events); at += 500 {
			must(b, pgx.BeginFunc(b.Context(), pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(b.Context(), "SET LOCAL search_path = chat; SET LOCAL synchronous_commit = off")
				if err != nil {
					return err
				}
				return p.Apply(b.Context(), tx, l.events[at:min(at+500, len(l.events))])
			}))
		}
		b.Logf("%s: %d events in %v", p.Name(), len(l.events), time.Since(begin).Round(time.Second))
	}
	_, err = pool.Exec(b.Context(), `INSERT INTO chat.memberships (room, member, opened_version, opened_position)
		SELECT 'conversation:' || id, member, 1, position FROM unnest($1::text[], $2::text[], $3::bigint[]) n (id, member, position)`,
		l.ids, l.members, l.positions)
	must(b, err)
	_, err = pool.Exec(b.Context(), "VACUUM ANALYZE")
	must(b, err)
	rows, err := pool.Query(b.Context(), `SELECT relname || ': ' || pg_size_pretty(pg_total_relation_size(c.oid))
		FROM pg_class c WHERE relnamespace = 'chat'::regnamespace AND relname ~ '^search|^messages' AND relkind = 'r' ORDER BY 1`)
	must(b, err)
	sizes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(b, err)
	b.Log(strings.Join(sizes, ", "))

	server := query.New(log, store.New(pool))
	measure := func(name, user, words, id string) {
		all = append(all, meshtest.Measure(b, name, func(ctx context.Context) (int, error) {
			got, err := server.Search(rpc.WithActor(ctx, user),
				connect.NewRequest(&chatv1.SearchRequest{Text: words, ConversationId: id}))
			if err != nil {
				return 0, err
			}
			return len(got.Msg.GetMessages()), nil
		}))
	}
	all = append(all, meshtest.Measure(b, "a page of the history, for comparison", func(ctx context.Context) (int, error) {
		got, err := server.History(rpc.WithActor(ctx, "member"), connect.NewRequest(&chatv1.HistoryRequest{ConversationId: "big"}))
		if err != nil {
			return 0, err
		}
		return len(got.Msg.GetMessages()), nil
	}))
	measure("a word in half of the messages", "member", "homework ", "big")
	measure("a rare word", "member", "needle ", "big")
	measure("a word that no message has", "member", "absent ", "big")
	measure("two words that never occur together", "member", "homework maths ", "big")
	measure("a phrase", "member", `"final exam"`, "big")
	measure("a phrase of frequent words that no message has", "member", `"exam final"`, "big")
	measure("the beginning of a word", "member", "hom", "big")
	measure("a rare word and a letter", "member", "needle w", "big")
	measure("a word in half of the messages, everywhere", "member", "homework ", "")
	measure("many conversations: a word in all of them", "heavy", "homework ", "")
	measure("many conversations: a rare word, the first page", "heavy", "needle ", "")
	measure("a small conversation: a word in half of all messages", "tiny", "homework ", "")
	measure("a small conversation: the beginning of a word", "tiny", "h", "")
	return all
}

// loader makes the events of conversations.
type loader struct {
	b        *testing.B
	catalog  *catalog.Catalog
	random   *rand.Rand
	at       time.Time
	position catalog.Position
	version  catalog.Version
	events   []envelope.Event

	ids, members []string
	positions    []int64
}

// text returns nine words of a vocabulary of 50,000. A frequent word is as much more frequent than another as in a
// language (Zipf's law).
func (l *loader) text() string {
	var words []string
	for range 9 {
		words = append(words, "word"+strconv.Itoa(int(math.Exp(l.random.Float64()*math.Log(50_000)))))
	}
	return strings.Join(words, " ")
}

func (l *loader) start(id, member string) {
	l.version = 0
	l.add(id, &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: []string{member, "author"}})
	l.ids, l.members, l.positions = append(l.ids, id), append(l.members, member), append(l.positions, int64(l.position))
}

func (l *loader) send(id, body string) {
	l.add(id, &chatv1.MessageSent{ConversationId: id, MessageId: fmt.Sprintf("%s-%s-%08d", id, "00000000-0000", l.version), Body: body})
}

func (l *loader) add(id string, m proto.Message) {
	declared, ok := l.catalog.EventOf(m)
	if !ok {
		l.b.Fatalf("%T is not an event", m)
	}
	body, err := proto.Marshal(m)
	must(l.b, err)
	l.position, l.version, l.at = l.position+1, l.version+1, l.at.Add(time.Millisecond)
	l.events = append(l.events, envelope.Event{Stream: "conversation:" + id, Type: declared.Name, Version: l.version,
		Position: l.position, Time: l.at, Actor: "author", Body: body})
}

//go:build integration

package query_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// BenchmarkSize measures whether what is asked of chat's log and its projection costs more in a large installation: 10
// million events, 50,000 users, a conversation of a million messages and 2,000 members, a user with 10,000 conversations.
// The same is measured at a hundredth of that, and printed beside it. SIZE_EVENTS is another number of events.
func BenchmarkSize(b *testing.B) {
	events := 10_000_000
	if given := os.Getenv("SIZE_EVENTS"); given != "" {
		var err error
		if events, err = strconv.Atoi(given); err != nil || events < 1_000_000 {
			b.Fatal("SIZE_EVENTS has to be a number from 1,000,000: a hundredth has to be of some size too")
		}
	}
	server := meshtest.NewPostgresServer(b)
	small := newSized(b, server.Database(b), sizeOf(events/100)).measure(b)
	large := newSized(b, server.Database(b), sizeOf(events)).measure(b)
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n\tp50 µs of %d\tof %d\tratio\tp99 µs\t\tratio\t\n", events/100, events)
	for i, l := range large {
		s := small[i]
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.1f\t%.0f\t%.0f\t%.1f\t\n", l.name, s.p50, l.p50, l.p50/s.p50, s.p99, l.p99, l.p99/s.p99)
	}
	_ = w.Flush() // into memory
	b.Log(text.String())
	b.ReportMetric(0, "ns/op")
}

// size is how much there is.
type size struct {
	events        int
	conversations int // of two users, the first ones with ann, the next ones with heavy
	users         int
	ann, heavy    int // how many conversations they have
	members       int // of the big conversation, which has a tenth of all events
}

func sizeOf(events int) size {
	return size{events: events, conversations: events / 100, users: events / 200, ann: events / 1000, heavy: events / 5000,
		members: events / 5000}
}

// sized is chat's log and projection of some size.
type sized struct {
	size
	pool   *pgxpool.Pool
	log    *eventlog.Log
	store  *store.Store
	server *query.Server
}

func newSized(b *testing.B, database string, n size) *sized {
	b.Helper()
	c, err := catalog.Load()
	must(b, err)
	pool, err := backend.Postgres{URL: database}.Open(b.Context())
	must(b, err)
	log, err := eventlog.Open(b.Context(), eventlog.Options{Owner: "chat", Pool: pool, Catalog: c,
		Migrations: store.Migrations(), Log: slog.New(slog.DiscardHandler)})
	must(b, err)
	s := &sized{n, pool, log, store.New(pool), query.New(log, store.New(pool))}
	begin := time.Now()
	s.fill(b)
	b.Logf("%d events were loaded in %v", n.events, time.Since(begin).Round(time.Second))
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = log.Run(ctx) }) // ends with ctx
	b.Cleanup(func() {
		stop()
		running.Wait()
		pool.Close()
	})
	return s
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

const (
	// Every tenth event is of the big conversation, the others go round. {k} counts these others from 0.
	sqlPlaces = `CREATE UNLOGGED TABLE places AS
SELECT p AS position, CASE WHEN p % 10 = 0 THEN 'big' ELSE 'c' || k % {C} END AS id,
  CASE WHEN p % 10 = 0 THEN p / 10 ELSE k / {C} + 1 END AS version
FROM generate_series(1::bigint, {N}) p, LATERAL (SELECT p - p / 10 - 1 AS k) k`
	sqlFillEvents = `INSERT INTO events (position, stream, version, id, type, topic, actor, cause, command_type, correlation,
  time, class, rooms, subject, answers, traceparent, body, personal)
SELECT position, 'conversation:' || id, version, gen_random_uuid(),
  CASE version WHEN 1 THEN 'chat.conversation_started' ELSE 'chat.message_sent' END,
  CASE position % ({N} / 100) WHEN 0 THEN 'file-events' ELSE 'chat-events' END, 'user' || position % {U}, md5(position::text),
  'chat.send_message', '', now() - ({N} - position) * interval '0.2 s', 1, ARRAY['conversation:' || id],
  CASE version WHEN 1 THEN '' ELSE 'm' || version END, true, '', $1, $2
FROM places`
	sqlFillRooms    = `INSERT INTO event_rooms (room, position) SELECT 'conversation:' || id, position FROM places`
	sqlFillOutcomes = `INSERT INTO outcomes (actor, command_id, type, stream, kind, version, position, code, text, at)
SELECT 'user' || position % {U}, md5(position::text), 'chat.send_message', 'conversation:' || id, 'committed', version, position,
  '', '', now() - ({N} - position) * interval '29 days' / {N}
FROM places WHERE position % 5 = 0`
	sqlPairs = `CREATE UNLOGGED TABLE pairs AS
SELECT 'c' || c AS id, c + c / 9 + 1 AS position, u.member, u.index
FROM generate_series(0::bigint, {C} - 1) c, LATERAL (
  SELECT 'user' || c % {U} AS member, 0 AS index
  UNION ALL SELECT CASE WHEN c < {A} THEN 'ann' WHEN c < {A} + {H} THEN 'heavy' ELSE 'guest' || c % {U} END, 1) u
UNION ALL SELECT 'big', 10, 'user' || m, m FROM generate_series(0, {M} - 1) m`
	sqlFillMemberships = `INSERT INTO memberships (room, member, opened_version, opened_position)
SELECT 'conversation:' || id, member, 1, position FROM pairs`
	sqlFillGone = `INSERT INTO memberships (room, member, opened_version, opened_position, closed_version, closed_position)
VALUES ('conversation:big', 'gone', 1, 10, 1000, 10000)`
	sqlFillConversations = `INSERT INTO conversations
  (conversation_id, kind, title, history_from_joining, version, position, changed_at, member_count, large)
SELECT id, 2, '', true, max(version), max(position), now(), CASE id WHEN 'big' THEN {M} ELSE 2 END, id = 'big' AND {M} > 64
FROM places GROUP BY id`
	sqlFillMembers = `INSERT INTO conversation_members (member, conversation_id, joined_version, joined_index, large, bucket)
SELECT p.member, p.id, 1, p.index, c.large, c.position >> CASE WHEN c.large THEN 20 ELSE 10 END
FROM pairs p JOIN conversations c ON c.conversation_id = p.id`
	sqlFillMessages = `INSERT INTO messages (conversation_id, version, message_id, author, body, sent_at)
SELECT id, version, 'm' || version, 'user' || position % {U}, 'A message of the usual length, as they are written all day long.',
  now() FROM places WHERE version > 1`

	sqlConstraints = `SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
  format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'chat'::regnamespace AND contype IN ('p', 'u', 'f')
  AND conrelid::regclass::text IN ('events', 'event_rooms', 'outcomes', 'memberships', 'conversations',
    'conversation_members', 'messages', 'edits')
ORDER BY contype`
	sqlIndexes = `SELECT format('DROP INDEX %s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'chat'::regnamespace AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)`
)

// fill loads the tables without their indexes, which are made afterwards.
func (s *sized) fill(b *testing.B) {
	b.Helper()
	conn, err := s.pool.Acquire(b.Context())
	must(b, err)
	defer conn.Release()
	run := func(statement string, args ...any) {
		b.Helper()
		statement = strings.NewReplacer("{N}", strconv.Itoa(s.events), "{C}", strconv.Itoa(s.conversations),
			"{U}", strconv.Itoa(s.users), "{A}", strconv.Itoa(s.ann), "{H}", strconv.Itoa(s.heavy),
			"{M}", strconv.Itoa(s.members)).Replace(statement)
		if _, err := conn.Exec(b.Context(), statement, args...); err != nil {
			b.Fatalf("%s: %v", statement, err)
		}
	}
	run("SELECT set_config('search_path', 'chat', false), set_config('maintenance_work_mem', '512MB', false), " +
		"set_config('work_mem', '128MB', false), set_config('synchronous_commit', 'off', false)")
	defer run("RESET ALL")
	var drop, again []string
	for _, list := range []string{sqlConstraints, sqlIndexes} {
		rows, err := conn.Query(b.Context(), list)
		must(b, err)
		var d, a string
		_, err = pgx.ForEachRow(rows, []any{&d, &a}, func() error {
			drop, again = append(drop, d), append(again, a)
			return nil
		})
		must(b, err)
		for _, statement := range drop {
			run(statement)
		}
		drop = nil
	}
	// References come last: their order is that of the letters f, p and u.
	slices.SortStableFunc(again, func(x, y string) int {
		return strings.Count(x, "FOREIGN KEY") - strings.Count(y, "FOREIGN KEY")
	})
	body, err := proto.Marshal(&chatv1.MessageSent{ConversationId: uuid.NewString(), MessageId: uuid.NewString()})
	must(b, err)
	text, err := proto.Marshal(&chatv1.MessageSent{Body: "A message of the usual length, as they are written all day long."})
	must(b, err)
	run(sqlPlaces)
	run(sqlFillEvents, body, append([]byte{0}, text...))
	for _, statement := range []string{sqlFillRooms, sqlFillOutcomes, sqlPairs, sqlFillMemberships, sqlFillGone,
		sqlFillConversations, sqlFillMembers, sqlFillMessages, "DROP TABLE places, pairs"} {
		run(statement)
	}
	for _, statement := range again {
		run(statement)
	}
	run("VACUUM ANALYZE")
	run("CHECKPOINT")
}

// duration is how long something took, in microseconds.
type duration struct {
	name     string
	p50, p99 float64
}

// measure does each thing over and over, with other values each time.
func (s *sized) measure(b *testing.B) (all []duration) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	repeat := func(name string, do func(ctx context.Context) error) {
		b.Helper()
		var took []float64
		for begin := time.Now(); len(took) < 20 || len(took) < 300 && time.Since(begin) < 4*time.Second; {
			before := time.Now()
			if err := do(b.Context()); err != nil {
				b.Fatalf("%s: %v", name, err)
			}
			took = append(took, float64(time.Since(before).Nanoseconds())/1000)
		}
		slices.Sort(took)
		all = append(all, duration{name, took[len(took)/2], took[len(took)*99/100]})
	}
	history := func(user string, page func(*chatv1.HistoryRequest)) func(context.Context) error {
		return func(ctx context.Context) error {
			q := &chatv1.HistoryRequest{ConversationId: "big"}
			page(q)
			got, err := s.server.History(rpc.WithActor(ctx, user), connect.NewRequest(q))
			if err == nil && len(got.Msg.GetMessages()) == 0 {
				return fmt.Errorf("no messages")
			}
			return err
		}
	}
	position := func() int64 { return r.Int64N(int64(s.events)) }
	member := func() string { return fmt.Sprint("user", r.IntN(s.members)) }
	repeat("history, newest page", history("user1", func(*chatv1.HistoryRequest) {}))
	repeat("history, oldest page", history("user1", func(q *chatv1.HistoryRequest) { q.After = new(int64(0)) }))
	repeat("history, in the middle", history("user1", func(q *chatv1.HistoryRequest) {
		q.Before = new(int64(100 + r.IntN(s.events/10-100)))
	}))
	repeat("history, of somebody who left", history("gone", func(*chatv1.HistoryRequest) {}))
	list := func(user, after string) func(context.Context) error {
		return func(ctx context.Context) error {
			got, err := s.server.Conversations(rpc.WithActor(ctx, user),
				connect.NewRequest(&chatv1.ConversationsRequest{After: after}))
			if err == nil && len(got.Msg.GetConversations()) == 0 {
				return fmt.Errorf("no conversations")
			}
			return err
		}
	}
	repeat("conversations of a user with many, first page", list("ann", ""))
	first, err := s.server.Conversations(rpc.WithActor(b.Context(), "ann"),
		connect.NewRequest(&chatv1.ConversationsRequest{}))
	must(b, err)
	repeat("conversations of a user with many, later page", list("ann", first.Msg.GetNext()))
	repeat("conversations of an ordinary user", func(ctx context.Context) error { return list(member(), "")(ctx) })
	repeat("members, a page in the middle", func(ctx context.Context) error {
		_, err := s.store.Members(ctx, "big", store.Seat{Version: 1, Index: int32(r.IntN(s.members))}, 50)
		return err
	})
	repeat("rooms of an ordinary user (connect)", func(ctx context.Context) error {
		_, _, err := s.log.Rooms(ctx, []string{member()})
		return err
	})
	repeat("rooms of a user with many (connect)", func(ctx context.Context) error {
		_, _, err := s.log.Rooms(ctx, []string{"ann"})
		return err
	})
	resume := func(user string, after int64) error {
		_, err := s.log.Resume(b.Context(), []eventlog.Resumer{{User: user, After: after, EventsAfter: after}}, eventlog.Bounds{})
		return err
	}
	repeat("resume of an ordinary user", func(context.Context) error {
		return resume(member(), int64(s.events-1-r.IntN(2000)))
	})
	repeat("resume of a user with many rooms, after weeks", func(context.Context) error {
		return resume("heavy", int64(s.events/10))
	})
	read := func(topic string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := s.log.Read(ctx, eventlog.Query{After: position(), Topic: topic})
			return err
		}
	}
	repeat("read the log, a page", read(""))
	repeat("read the log, a page of a dense topic", read("chat-events"))
	repeat("read the log, a page of a sparse topic", read("file-events"))
	repeat("load a large stream for a message of it", func(ctx context.Context) error {
		_, err := s.log.Load(ctx, eventlog.Selection{Stream: "conversation:big", Subjects: []string{fmt.Sprint("m", 2+r.IntN(s.events/10-2))}})
		return err
	})
	repeat("load a small stream", func(ctx context.Context) error {
		_, err := s.log.Load(ctx, eventlog.Selection{Stream: fmt.Sprint("conversation:c", r.IntN(s.conversations))})
		return err
	})
	repeat("append", func(ctx context.Context) error {
		id := fmt.Sprint("c", r.IntN(s.conversations))
		_, err := s.log.Commit(ctx, eventlog.Write{Appends: []eventlog.Append{{Stream: "conversation:" + id,
			Expected: eventlog.AnyVersion, Actor: "ann", Events: []proto.Message{&chatv1.MessageSent{ConversationId: id,
				MessageId: uuid.NewString(), Body: "hi"}}}}})
		return err
	})
	repeat("a pass over old outcomes", func(ctx context.Context) error {
		_, err := s.log.PruneOutcomes(ctx, time.Hour*24*30)
		return err
	})
	return all
}

//go:build integration

package query_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/membership"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/process"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// BenchmarkSize measures reads and writes of chat's log and its projection in a large installation and in one of a
// hundredth of its size, and prints the results of both. The large one has 10 million events, 50,000 users, a
// conversation with a million messages and 2,000 members, and a user with 10,000 conversations. The environment
// variable SIZE_EVENTS sets another number of events.
func BenchmarkSize(b *testing.B) {
	events := 10_000_000
	if given := os.Getenv("SIZE_EVENTS"); given != "" {
		var err error
		if events, err = strconv.Atoi(given); err != nil || events < 1_000_000 {
			b.Fatal("SIZE_EVENTS must be a number of at least 1,000,000, so that the small size is not trivial")
		}
	}
	// The settings are those of a service and of `edumatrix up` on a machine with 8 GiB, except that loading writes no
	// WAL.
	process.TuneMemory(process.OneService, slog.New(slog.DiscardHandler))
	server := meshtest.NewPostgresServerWith(b, 1<<30, map[string]string{"wal_level": "minimal", "max_wal_senders": "0"})
	small := newSized(b, server.Database(b), sizeOf(events/100, events)).measure(b)
	large := newSized(b, server.Database(b), sizeOf(events, events)).measure(b)
	meshtest.LogSizes(b, events/100, events, small, large)
	b.ReportMetric(0, "ns/op")
}

// size is the size of an installation. Every tenth event is in the conversation "big". The other conversations have
// about 90 events each.
type size struct {
	events        int
	conversations int // the number of conversations with two members
	users         int
	// ann and heavy are the numbers of conversations of the users with these names. The user ann is in the first
	// conversations, and the user heavy is in the next ones.
	ann, heavy int
	members    int // the number of members of the conversation "big"
	recent     int // the number of positions at the end of the log that are read repeatedly; the same at both sizes
	span       int // the number of positions that a page of a sparse topic spans; the same at both sizes
}

// sizeOf returns the size of an installation with the given number of events. The parameter large is the number of
// events in the large installation. Even in the small installation, every list has more rows than two pages, so that
// reading a page is the same work at both sizes.
func sizeOf(events, large int) size {
	const twoPages = 110
	conversations := max(events/100, 10*twoPages)
	return size{events: events, conversations: conversations, users: conversations / 2, ann: conversations / 10,
		heavy: max(conversations/50, 200), members: max(events/5000, twoPages), recent: large / 100,
		span: min(20_000, large/200)}
}

// place returns the conversation of the event at a position, and the event's version.
func (s size) place(position int) (id string, version int) {
	if position%10 == 0 {
		return "big", position / 10
	}
	k := position - position/10 - 1
	return "c" + strconv.Itoa(k%s.conversations), k/s.conversations + 1
}

// second returns the second member of conversation c. The first member is user number c, modulo the number of users.
func (s size) second(c int) string {
	switch {
	case c < s.ann:
		return "ann"
	case c < s.ann+s.heavy:
		return "heavy"
	case c%6 == 0:
		return "spread" // a user whose conversations are spread over all conversations
	}
	return "guest" + strconv.Itoa(c%s.users)
}

// sized is chat's log and projection with the contents that a size describes.
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

// measure repeats each operation, most of them with other values each time, and returns the measurements.
func (s *sized) measure(b *testing.B) (all []meshtest.Measured) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	repeat := func(name string, do func(ctx context.Context) (rows int, err error)) {
		b.Helper()
		all = append(all, meshtest.Measure(b, name, do))
	}
	history := func(user string, page func(*chatv1.HistoryRequest)) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			q := &chatv1.HistoryRequest{ConversationId: "big"}
			page(q)
			got, err := s.server.History(rpc.WithActor(ctx, user), connect.NewRequest(q))
			if err != nil {
				return 0, err
			}
			return some(len(got.Msg.GetMessages()))
		}
	}
	member := func() string { return fmt.Sprint("user", r.IntN(s.members)) }
	repeat("history, newest page", history("user1", func(*chatv1.HistoryRequest) {}))
	repeat("history, oldest page", history("user1", func(q *chatv1.HistoryRequest) { q.After = new(int64(0)) }))
	repeat("history, in the middle", history("user1", func(q *chatv1.HistoryRequest) {
		q.Before = new(int64(100 + r.IntN(s.events/10-100)))
	}))
	repeat("history, of a user who left early", history("gone", func(*chatv1.HistoryRequest) {}))
	list := func(user, after string) (*chatv1.ConversationsResponse, error) {
		got, err := s.server.Conversations(rpc.WithActor(b.Context(), user),
			connect.NewRequest(&chatv1.ConversationsRequest{After: after}))
		if err != nil {
			return nil, err
		}
		return got.Msg, nil
	}
	for _, user := range []struct{ name, what string }{
		{"ann", "conversations of a user with many, all active at once"}, {"spread", "conversations of a user with many"},
	} {
		page := func(after string) func(context.Context) (int, error) {
			return func(context.Context) (int, error) {
				got, err := list(user.name, after)
				if err != nil {
					return 0, err
				}
				return some(len(got.GetConversations()))
			}
		}
		first, err := list(user.name, "")
		must(b, err)
		repeat(user.what+", first page", page(""))
		repeat(user.what+", later page", page(first.GetNext()))
	}
	repeat("conversations of an ordinary user", func(context.Context) (int, error) {
		got, err := list(member(), "")
		return len(got.GetConversations()), err
	})
	repeat("members, a page in the middle", func(ctx context.Context) (int, error) {
		got, err := s.store.Members(ctx, "big", store.JoinOrder{Version: 1, Index: int32(r.IntN(s.members / 2))}, 50)
		return len(got.Members), err
	})
	connecting := func(user func() string) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			name := user()
			rooms, _, err := membership.Rooms(ctx, s.log, []string{name})
			return len(rooms[name]), err
		}
	}
	repeat("rooms of an ordinary user (connect)", connecting(member))
	repeat("rooms of a user with many (connect)", connecting(func() string { return "ann" }))
	resume := func(user string, after int) (int, error) {
		got, err := membership.Resume(b.Context(), s.log, []membership.Resumer{{User: user, After: catalog.Position(after), EventsAfter: catalog.Position(after)}},
			membership.Bounds{})
		if err != nil {
			return 0, err
		}
		return len(got.Resumed[0].Intervals) + len(got.Events), nil
	}
	repeat("resume of an ordinary user", func(context.Context) (int, error) {
		return resume(member(), s.events-1-r.IntN(2000))
	})
	repeat("resume of a user with many rooms, after weeks", func(context.Context) (int, error) {
		return resume("heavy", s.events/10)
	})
	// A reader that is slightly behind reads the newest events, which the database server usually has in memory. Read
	// these events once before the measurement, so that the database server has them in memory here too. Pages from
	// random positions of the large log are mostly not in memory.
	for after := s.events - s.recent; after < s.events; after += 1_000 {
		_, err := s.log.Read(b.Context(), eventlog.Query{After: catalog.Position(after), Limit: 1_000})
		must(b, err)
	}
	read := func(topic string, span, among int) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			after := s.events - among + r.IntN(among-span)
			got, err := s.log.Read(ctx, eventlog.Query{After: catalog.Position(after), Until: catalog.Position(after + span), Topic: topic})
			return len(got.Events), err
		}
	}
	sparse := fmt.Sprintf("read the log, a page of a sparse topic (%d positions)", s.span)
	repeat("read the log, a page", read("", 2_000, s.recent))
	repeat("read the log, a page of a dense topic", read("chat-events", 2_000, s.recent))
	repeat(sparse, read("file-events", s.span, s.recent))
	repeat("read the log, a page from anywhere", read("", 2_000, s.events))
	repeat(sparse+" from anywhere", read("file-events", s.span, s.events))
	repeat("load a large stream to decide about one message", func(ctx context.Context) (int, error) {
		got, err := s.log.Load(ctx, eventlog.Selection{Stream: "conversation:big",
			Subjects: []string{fmt.Sprint("m", 2+r.IntN(s.events/10-2))}})
		return len(got.Events), err
	})
	repeat("load a small stream", func(ctx context.Context) (int, error) {
		got, err := s.log.Load(ctx, eventlog.Selection{Stream: fmt.Sprint("conversation:c", r.IntN(s.conversations))})
		return len(got.Events), err
	})
	repeat("append", func(ctx context.Context) (int, error) {
		id := fmt.Sprint("c", r.IntN(s.conversations))
		_, err := s.log.Commit(ctx, eventlog.Write{Appends: []eventlog.Append{{Stream: "conversation:" + id,
			Expected: eventlog.AnyVersion, Actor: "ann", Events: []proto.Message{&chatv1.MessageSent{ConversationId: id,
				MessageId: uuid.NewString(), Body: "hi"}}}}})
		return 1, err
	})
	repeat("delete old outcomes when there are none", func(ctx context.Context) (int, error) {
		removed, err := s.log.PruneOutcomes(ctx, time.Hour*24*30)
		return int(removed), err
	})
	return all
}

// some returns an error for an answer without rows, because an empty answer would be fast for the wrong reason.
func some(rows int) (int, error) {
	if rows == 0 {
		return 0, errors.New("the answer is empty")
	}
	return rows, nil
}

//go:build integration

package store_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

type fixture struct {
	t    *testing.T
	pool *pgxpool.Pool
	log  *eventlog.Log
	p    *store.Conversations
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	c, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := backend.Postgres{URL: meshtest.Postgres(t)}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Open(t.Context(), eventlog.Options{Owner: "chat", Pool: pool, Catalog: c, Migrations: store.Migrations()})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, pool, log, store.NewConversations(c)}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- log.Run(ctx) }()
	go func() { ended <- log.Follow(ctx, f.p) }()
	t.Cleanup(func() {
		stop()
		<-ended
		<-ended
		pool.Close()
	})
	return f
}

func (f *fixture) happens(actor, stream string, events ...proto.Message) {
	f.t.Helper()
	c, err := f.log.Commit(f.t.Context(), eventlog.Write{Appends: []eventlog.Append{{Stream: stream,
		Expected: eventlog.AnyVersion, Actor: actor, Events: events}}})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.log.WaitFor(f.t.Context(), store.ProjectionName, c.Position); err != nil {
		f.t.Fatal(err)
	}
}

// rows are all rows of the projection, as text.
func (f *fixture) rows() (all []string) {
	f.t.Helper()
	for _, table := range []string{"conversations", "conversation_members", "messages", "edits"} {
		rows, err := f.pool.Query(f.t.Context(), "SELECT '"+table+"' || t::text FROM chat."+table+" t ORDER BY 1")
		if err != nil {
			f.t.Fatal(err)
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			f.t.Fatal(err)
		}
		all = append(all, texts...)
	}
	return all
}

// rebuild empties the projection and has it follow the log from the beginning.
func (f *fixture) rebuild() {
	f.t.Helper()
	head, err := f.log.Head(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	err = f.log.Reset(f.t.Context(), store.ProjectionName, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "TRUNCATE edits, messages, conversation_members, conversations")
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.log.WaitFor(f.t.Context(), store.ProjectionName, head); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) example() {
	for i := range 3 {
		id := fmt.Sprint("c", i)
		stream := "conversation:" + id
		f.happens("alice", stream, &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, Title: "t\x00i",
			UserIds: []string{"alice", "bob"}, HistoryFromJoining: i == 1})
		for n := range 5 {
			f.happens("bob", stream, &chatv1.MessageSent{ConversationId: id, MessageId: fmt.Sprint("m", n), Body: fmt.Sprint("body ", n)})
		}
		f.happens("bob", stream, &chatv1.MessageEdited{ConversationId: id, MessageId: "m1", Body: "edited"},
			&chatv1.MessageEdited{ConversationId: id, MessageId: "m2", Body: "edited"})
		f.happens("bob", stream, &chatv1.MessageDeleted{ConversationId: id, MessageId: "m2"})
		f.happens("alice", stream, &chatv1.MemberAdded{ConversationId: id, UserId: "carol"}, &chatv1.MemberLeft{ConversationId: id, UserId: "bob"})
	}
}

func TestConversations_RebuiltTheyAreEqualRowForRow(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.example()
	live := f.rows()
	if len(live) != 3+6+15+3 {
		t.Fatalf("%d rows: %v", len(live), live)
	}
	f.rebuild()
	if rebuilt := f.rows(); !slices.Equal(rebuilt, live) {
		t.Fatalf("rebuilt %v\nlive    %v", rebuilt, live)
	}
}

// A command that comes again when its outcome is forgotten makes the id of its message again. That must not hold up the
// projection of everybody, and rebuilds to the same.
func TestConversations_AMessageIDThatComesAgainStopsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	sent := &chatv1.MessageSent{ConversationId: "c", MessageId: "m", Body: "again"}
	f.happens("alice", "conversation:c", &chatv1.ConversationStarted{ConversationId: "c", Kind: chatv1.Kind_KIND_DIRECT,
		UserIds: []string{"alice", "bob"}}, sent, &chatv1.MessageEdited{ConversationId: "c", MessageId: "m", Body: "edited"})
	f.happens("alice", "conversation:c", &chatv1.MessageDeleted{ConversationId: "c", MessageId: "m"})
	f.happens("alice", "conversation:c", sent)
	got, err := store.New(f.pool).Messages(t.Context(), "c", 0, 99, []store.Range{{From: 1, To: 99}}, true, 9)
	if err != nil || len(got) != 2 || !got[0].GetDeleted() || got[0].GetBody() != "" || got[1].GetBody() != "again" {
		t.Fatalf("%v %v", got, err)
	}
}

func TestStore_ListsAndPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.example()
	s := store.New(f.pool)
	page, below, err := s.Conversations(t.Context(), "carol", 0, 2)
	if err != nil || len(page) != 2 || page[0].ConversationId != "c2" || page[1].ConversationId != "c1" || page[0].Version != 11 {
		t.Fatalf("%v %v", page, err)
	}
	if page[0].Title != "t\uFFFDi" || !slices.Equal(page[0].UserIds, []string{"alice", "carol"}) {
		t.Errorf("%v", page[0])
	}
	if page, _, err = s.Conversations(t.Context(), "carol", below, 2); err != nil || len(page) != 1 || page[0].ConversationId != "c0" {
		t.Fatalf("%v %v", page, err)
	}
	if page, _, _ = s.Conversations(t.Context(), "bob", 0, 2); len(page) != 0 {
		t.Fatalf("bob left: %v", page)
	}
	everything := []store.Range{{From: 1, To: math.MaxInt64}}
	bodies := func(after, before int64, ranges []store.Range, up bool, limit int) (all []string) {
		messages, err := s.Messages(t.Context(), "c0", after, before, ranges, up, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			all = append(all, m.Body)
		}
		return all
	}
	for _, test := range []struct{ got, want []string }{
		{bodies(0, math.MaxInt64, everything, false, 9), []string{"body 0", "edited", "", "body 3", "body 4"}},
		{bodies(0, math.MaxInt64, everything, false, 2), []string{"body 3", "body 4"}},
		{bodies(0, 5, everything, false, 2), []string{"edited", ""}},
		{bodies(2, math.MaxInt64, everything, true, 2), []string{"edited", ""}},
		{bodies(0, math.MaxInt64, []store.Range{{From: 2, To: 2}, {From: 6, To: 9}}, false, 9), []string{"body 0", "body 4"}},
		{bodies(0, math.MaxInt64, nil, false, 9), nil},
	} {
		if !slices.Equal(test.got, test.want) {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

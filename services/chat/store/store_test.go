//go:build integration

package store_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
)

// fixture is chat's log with the projection that follows it, and the store that reads the rows.
type fixture struct {
	*eventlogtest.Log
	t     *testing.T
	store *store.Store
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	l := eventlogtest.Open(t, "chat", store.Migrations())
	l.Follow(store.DeclareConversations())
	return &fixture{l, t, store.New(l.Pool)}
}

// happens commits events, and waits until the projection has applied them.
func (f *fixture) happens(actor string, events ...proto.Message) {
	f.Append(actor, events...)
	f.CatchUp()
}

func (f *fixture) example() {
	for i := range 3 {
		id := fmt.Sprint("c", i)
		f.happens("alice", &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, Title: "t\x00i",
			UserIds: []string{"alice", "bob"}, HistoryFromJoining: i == 1})
		for n := range 5 {
			f.happens("bob", &chatv1.MessageSent{ConversationId: id, MessageId: fmt.Sprint("m", n), Body: fmt.Sprint("body ", n)})
		}
		f.happens("bob", &chatv1.MessageEdited{ConversationId: id, MessageId: "m1", Body: "edited"},
			&chatv1.MessageEdited{ConversationId: id, MessageId: "m2", Body: "edited"})
		f.happens("bob", &chatv1.MessageDeleted{ConversationId: id, MessageId: "m2"})
		f.happens("alice", &chatv1.MemberAdded{ConversationId: id, UserId: "carol"}, &chatv1.MemberLeft{ConversationId: id, UserId: "bob"})
	}
}

func TestConversations_ARebuildGivesTheSameRows(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.example()
	require.Len(t, f.Rows(), 3+6+15+3+3) // alice has unread messages in each conversation
	f.RequireRebuild()
}

// A command that is sent again after its outcome has been deleted sends a message with the same id again. The
// projection must store both messages, not stop.
func TestConversations_ARepeatedMessageIDStopsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	sent := &chatv1.MessageSent{ConversationId: "c", MessageId: "m", Body: "again"}
	f.happens("alice", &chatv1.ConversationStarted{ConversationId: "c", Kind: chatv1.Kind_KIND_DIRECT,
		UserIds: []string{"alice", "bob"}}, sent, &chatv1.MessageEdited{ConversationId: "c", MessageId: "m", Body: "edited"})
	f.happens("alice", &chatv1.MessageDeleted{ConversationId: "c", MessageId: "m"})
	f.happens("alice", sent)
	got, _, err := f.store.Messages(t.Context(), "c", store.Page{Before: 99, Ranges: []store.Range{{From: 1, To: 99}},
		FromAfter: true, Limit: 9})
	if err != nil || len(got) != 2 || !got[0].GetDeleted() || got[0].GetBody() != "" || got[1].GetBody() != "again" {
		t.Fatalf("%v %v", got, err)
	}
}

func TestStore_ListsAndPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.example()
	s := f.store
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
	bodies := func(after, before catalog.Version, ranges []store.Range, up bool, limit int) (all []string) {
		messages, _, err := s.Messages(t.Context(), "c0", store.Page{After: after, Before: before, Ranges: ranges, FromAfter: up, Limit: limit})
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

func group(id string, users ...string) proto.Message {
	return &chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_GROUP, UserIds: users}
}

func join(id, user string) proto.Message {
	return &chatv1.MemberAdded{ConversationId: id, UserId: user}
}

func leave(id, user string) proto.Message {
	return &chatv1.MemberLeft{ConversationId: id, UserId: user}
}

// A conversation becomes large, small, and large again. The list of a user's conversations must stay in order, and the
// members must stay in the order in which they joined.
func TestStore_LargeConversations(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := f.store
	var first []string
	for n := range 500 {
		first = append(first, fmt.Sprintf("user%d", n))
	}
	f.happens("user0", group("large", first...))
	var more []proto.Message
	for n := 500; n < 2000; n++ {
		more = append(more, join("large", fmt.Sprintf("user%d", n)))
	}
	for batch := range slices.Chunk(more, 500) {
		f.happens("user0", batch...)
	}
	f.happens("user0", group("small", "user0", "user1"))
	list := func() (ids []string) {
		all, next, err := s.Conversations(t.Context(), "user1", 0, 9)
		require.NoError(t, err)
		require.Zero(t, next)
		for _, c := range all {
			ids = append(ids, c.ConversationId)
			want := map[string]int32{"large": 2000, "small": 2}[c.ConversationId]
			require.Equal(t, want, c.MemberCount)
			require.Len(t, c.UserIds, min(int(want), store.MaxSmall))
			require.Equal(t, "user0", c.UserIds[0])
		}
		return ids
	}
	require.Equal(t, []string{"small", "large"}, list())
	f.happens("user7", &chatv1.MessageSent{ConversationId: "large", MessageId: "m", Body: "hi"})
	require.Equal(t, []string{"large", "small"}, list())
	var users []string
	for after, pages := (store.JoinOrder{}), 0; ; pages++ {
		m := f.members("large", after, 200)
		require.EqualValues(t, 2000, m.Count)
		require.EqualValues(t, 1502, m.Version)
		for _, member := range m.Members {
			users = append(users, member.UserId)
		}
		if m.Next == (store.JoinOrder{}) {
			require.Equal(t, 9, pages)
			break
		}
		after = m.Next
	}
	require.Len(t, users, 2000)
	for n, user := range users {
		require.Equal(t, fmt.Sprintf("user%d", n), user)
	}
	// Make the conversation small. Then make it large, small and large again within one batch of events. Then make it
	// small in a second batch, and large in a third one. A rebuild must lead to the same rows.
	var parting []proto.Message
	for n := 2000; n > store.MaxSmall; n-- {
		parting = append(parting, leave("large", fmt.Sprintf("user%d", n-1)))
	}
	for batch := range slices.Chunk(parting, 900) {
		f.happens("user0", batch...)
	}
	f.happens("user0", join("large", "ann"), leave("large", "user5"), join("large", "user5"))
	f.happens("user0", leave("large", "ann"))
	f.happens("user0", join("large", "ann"))
	f.RequireRebuild()
	require.Equal(t, "ann", f.members("large", store.JoinOrder{}, 200).Members[64].UserId)
}

// A page of messages must end before its texts exceed MaxPageBytes, and report that there are more messages. A page
// must contain at least one message, however long the message is.
func TestStore_PagesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	all := []proto.Message{group("c", "ann", "bob")}
	for n := range 100 {
		all = append(all, &chatv1.MessageSent{ConversationId: "c", MessageId: fmt.Sprint(n), Body: strings.Repeat("x", 16_000)})
	}
	f.happens("ann", all...)
	f.happens("ann", &chatv1.MessageEdited{ConversationId: "c", MessageId: "50", Body: strings.Repeat("x", 600_000)})
	s := f.store
	for _, up := range []bool{true, false} {
		for _, ranges := range [][]store.Range{{{From: 1, To: 200}}, single(200)} {
			page := store.Page{Before: math.MaxInt64, Ranges: ranges, FromAfter: up, Limit: 60}
			var versions []catalog.Version
			for pages := 0; ; pages++ {
				require.Less(t, pages, 7, "pages; each holds 32 messages")
				got, more, err := s.Messages(t.Context(), "c", page)
				require.NoError(t, err)
				require.NotEmpty(t, got)
				bytes := 0
				for _, m := range got {
					versions, bytes = append(versions, catalog.Version(m.Version)), bytes+len(m.Body)
				}
				require.True(t, bytes <= store.MaxPageBytes || len(got) == 1, "%d bytes", bytes)
				if !more {
					break
				}
				page.After, page.Before = catalog.Version(got[len(got)-1].Version), catalog.Version(got[0].Version)
				if up {
					page.Before = math.MaxInt64
				} else {
					page.After = 0
				}
			}
			slices.Sort(versions)
			require.Len(t, slices.Compact(versions), 100)
			require.Len(t, versions, 100)
		}
	}
}

// single returns one range for each version from 1 to the given one. A user who joins and leaves all the time has such
// ranges.
func single(to catalog.Version) (all []store.Range) {
	for v := range to {
		all = append(all, store.Range{From: v + 1, To: v + 1})
	}
	return all
}

// In the events of an earlier release, an owner who left did not name the new owner. The member who had joined first
// must be the owner in the rows, also after a rebuild.
func TestConversations_AnOwnerLeftInAnEarlierRelease(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.happens("ann", group("c", "ann", "bob", "cid"))
	f.happens("bob", join("c", "ann2"))
	f.happens("ann", leave("c", "ann"))
	f.CatchUp()
	var owners []string
	for _, m := range f.members("c", store.JoinOrder{}, 10).Members {
		if m.Role == chatv1.Role_ROLE_OWNER {
			owners = append(owners, m.UserId)
		}
	}
	require.Equal(t, []string{"bob"}, owners)
	f.RequireRebuild()
}

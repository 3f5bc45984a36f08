//go:build integration

package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/services/chat/marker"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
)

// recount is a simple model of what is unread in a conversation: it applies every event of the log, and counts messages
// one by one.
type recount struct {
	version  int64
	joined   map[string]int64 // the version at which each member joined
	messages []*toRead
	marked   map[string]int64 // the newest place of each user's marker
	seen     map[string]int64
}

// toRead is a message as a reader sees it.
type toRead struct {
	id, author string
	version    int64
	inThread   bool
	deleted    bool
	mentioned  []string
	all        bool
}

func newRecount() *recount {
	return &recount{joined: map[string]int64{}, marked: map[string]int64{}, seen: map[string]int64{}}
}

func (r *recount) apply(actor string, event proto.Message) {
	switch e := event.(type) {
	case *chatv1.ReadMarkerMoved:
		r.marked[e.UserId], r.seen[e.UserId] = e.UpTo, e.SeenUpTo
		return
	case *chatv1.MessagesSeen:
		return
	}
	r.version++
	switch e := event.(type) {
	case *chatv1.ConversationStarted:
		for _, user := range e.UserIds {
			r.joined[user] = r.version
		}
	case *chatv1.MemberAdded:
		r.joined[e.UserId] = r.version
	case *chatv1.MemberLeft:
		delete(r.joined, e.UserId)
	case *chatv1.MessageSent:
		r.messages = append(r.messages, &toRead{id: e.MessageId, author: actor, version: r.version, inThread: e.ThreadId != "",
			mentioned: e.MentionedUserIds, all: e.MentionsAll})
	case *chatv1.MessageEdited:
		for _, m := range r.messages {
			if m.id == e.MessageId {
				m.mentioned, m.all = e.MentionedUserIds, e.MentionsAll
			}
		}
	case *chatv1.MessageDeleted:
		for _, m := range r.messages {
			m.deleted = m.deleted || m.id == e.MessageId
		}
	}
}

func (r *recount) of(user string) (messages, mentions int32, upTo int64) {
	upTo = max(r.marked[user], r.joined[user])
	for _, m := range r.messages {
		if m.version <= upTo || m.deleted || m.author == user {
			continue
		}
		if !m.inThread {
			messages++
		}
		if m.all || slices.Contains(m.mentioned, user) {
			mentions++
		}
	}
	return min(messages, 100), min(mentions, 100), upTo
}

// talk is a conversation in the log, with the state of its aggregate and the model.
type talk struct {
	f     *fixture
	id    string
	state *conversation.State
	model *recount
}

func (k *talk) happens(actor string, events []proto.Message) {
	for _, e := range events {
		k.state.Evolve(catalog.Fact{Actor: actor}, e)
		k.model.apply(actor, e)
	}
	if len(events) > 0 {
		k.f.Append(actor, events...)
	}
}

// do decides a command as the service does. It reports whether the command led to events.
func (k *talk) do(t *rapid.T, actor string, command proto.Message) bool {
	switch command.(type) {
	case *chatv1.MarkRead, *chatv1.MarkUnread:
		if k.model.joined[actor] == 0 {
			return false // the log refuses the commands of users who are not members
		}
		outcome := eventlogtest.Decide(k.f.Log, marker.New, actor, command)
		if outcome.Code != "" {
			t.Fatalf("%v is refused: %s", command, outcome.Code)
		}
		for _, e := range outcome.Events {
			k.model.apply(actor, e)
		}
		return len(outcome.Events) > 0
	}
	events, err := k.state.Decide(catalog.Origin{Actor: actor, CommandID: uuid.NewString()}, command)
	var refused *refusal.Error
	if err != nil && !errors.As(err, &refused) {
		t.Fatal(err)
	}
	k.happens(actor, events)
	return len(events) > 0
}

// reading draws a random command that may change what is unread in a conversation.
func (k *talk) reading(t *rapid.T, users []string) proto.Message {
	user := rapid.SampledFrom(users).Draw(t, "user")
	version := rapid.Int64Range(1, k.model.version+3).Draw(t, "version")
	message := "none"
	if len(k.model.messages) > 0 {
		message = rapid.SampledFrom(k.model.messages).Draw(t, "message").id
	}
	mentioned := rapid.SliceOfN(rapid.SampledFrom(users), 0, 2).Draw(t, "mentioned")
	all := rapid.IntRange(0, 4).Draw(t, "all") == 0
	send := &chatv1.SendMessage{ConversationId: k.id, Body: "text", MentionedUserIds: mentioned, MentionsAll: all}
	return rapid.SampledFrom([]proto.Message{
		send, send, &chatv1.SendMessage{ConversationId: k.id, Body: "text", ReplyTo: &message, InThread: true, MentionedUserIds: mentioned},
		&chatv1.EditMessage{ConversationId: k.id, MessageId: message, Body: "other", MentionedUserIds: mentioned, MentionsAll: all},
		&chatv1.DeleteMessage{ConversationId: k.id, MessageId: message},
		&chatv1.MarkRead{ConversationId: k.id, UpTo: version}, &chatv1.MarkRead{ConversationId: k.id, UpTo: version},
		&chatv1.MarkUnread{ConversationId: k.id, From: version},
		&chatv1.AddMember{ConversationId: k.id, UserId: user}, &chatv1.AddMember{ConversationId: k.id, UserId: user},
		&chatv1.Leave{ConversationId: k.id},
	}).Draw(t, "command")
}

// Users send, answer, edit and delete messages, move their markers from several devices, whose commands arrive in any
// order, join, leave and join again. After each step, every count that a query returns must equal a recount. Some
// conversations have so many members that they become large and small again. A rebuild must lead to the same rows.
func TestUnread_EqualsARecountAfterEveryStep(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var fillers []string
	for n := range store.MaxSmall - 2 {
		fillers = append(fillers, fmt.Sprint("filler", n))
	}
	rapid.Check(t, func(t *rapid.T) {
		run := uuid.NewString()
		users := []string{"ann" + run, "bob" + run, "cid" + run, "dan" + run}
		var talks []*talk
		for n := range 2 {
			id := uuid.NewString()
			k := &talk{f, id, conversation.New("conversation:" + id), newRecount()}
			others := []string{users[1]}
			if n == 1 {
				others = append(others, fillers...) // one more member, and the conversation is large
			}
			k.do(t, users[0], &chatv1.StartGroup{UserIds: others, HistoryFromJoining: rapid.Bool().Draw(t, "from joining")})
			talks = append(talks, k)
		}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			k := rapid.SampledFrom(talks).Draw(t, "conversation")
			actor := rapid.SampledFrom(users).Draw(t, "actor")
			if !k.do(t, actor, k.reading(t, users)) {
				continue
			}
			f.CatchUp()
			for _, user := range users {
				requireRecount(t, f, user, talks)
			}
		}
	})
	f.RequireRebuild()
}

// requireRecount fails the test if a query returns other counts for a user than the models.
func requireRecount(t *rapid.T, f *fixture, user string, talks []*talk) {
	all, _, err := f.store.Conversations(f.t.Context(), user, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	want, listed := &chatv1.UnreadResponse{}, 0
	for _, k := range talks {
		if k.model.joined[user] == 0 {
			continue
		}
		i := slices.IndexFunc(all, func(c *chatv1.Conversation) bool { return c.ConversationId == k.id })
		if listed++; i < 0 {
			t.Fatalf("the list of %s lacks %s", user, k.id)
		}
		messages, mentions, upTo := k.model.of(user)
		if c := all[i]; c.UnreadCount != messages || c.MentionCount != mentions || c.ReadUpTo != upTo {
			t.Fatalf("%s has %d unread messages and %d mentions after %d; want %d, %d and %d", user, c.UnreadCount,
				c.MentionCount, c.ReadUpTo, messages, mentions, upTo)
		}
		if messages > 0 {
			want.ConversationCount++
		}
		want.MentionCount += mentions
		requireMarkers(t, f, user, k)
	}
	if len(all) != listed {
		t.Fatalf("%s is in %d conversations; want %d", user, len(all), listed)
	}
	if got, err := f.store.Unread(f.t.Context(), user); err != nil || !proto.Equal(got, want) {
		t.Fatalf("the totals of %s are %v, %v; want %v", user, got, err, want)
	}
}

func requireMarkers(t *rapid.T, f *fixture, user string, k *talk) {
	got, err := f.store.Markers(f.t.Context(), k.id, user, marker.MaxShown)
	if err != nil {
		t.Fatal(err)
	}
	messages, mentions, upTo := k.model.of(user)
	if got.UnreadCount != messages || got.MentionCount != mentions || got.ReadUpTo != upTo || got.Version != k.model.version {
		t.Fatalf("the markers of %s are %v; want %d, %d, %d at %d", user, got, messages, mentions, upTo, k.model.version)
	}
	if shown := len(k.model.joined) <= marker.MaxShown; len(got.Markers) > 0 != shown {
		t.Fatalf("%d of %d markers are shown", len(got.Markers), len(k.model.joined))
	}
	for _, m := range got.Markers {
		if m.SeenUpTo != k.model.seen[m.UserId] {
			t.Fatalf("%s has seen %d; want %d", m.UserId, m.SeenUpTo, k.model.seen[m.UserId])
		}
	}
}

// The superseded events of markers are deleted from the log after a month. A rebuild from the events that are left must
// lead to the same rows.
func TestUnread_ARebuildNeedsOnlyTheNewestEventOfAMarker(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.happens("ann", group("c", "ann", "bob"), join("c", "cid"))
	sent := func(id string) proto.Message {
		return &chatv1.MessageSent{ConversationId: "c", MessageId: id, Body: "hi", MentionsAll: true}
	}
	mark := func(user string, command proto.Message) {
		require.NotEmpty(t, eventlogtest.Decide(f.Log, marker.New, user, command).Events)
		f.CatchUp()
	}
	f.happens("ann", sent("m1"), sent("m2"), sent("m3")) // versions 3 to 5
	for upTo := int64(3); upTo <= 5; upTo++ {
		mark("bob", &chatv1.MarkRead{ConversationId: "c", UpTo: upTo})
		mark("cid", &chatv1.MarkRead{ConversationId: "c", UpTo: upTo})
	}
	mark("cid", &chatv1.MarkUnread{ConversationId: "c", From: 5})
	for _, statement := range []string{"UPDATE chat.events SET time = time - interval '40 days' WHERE class = 2",
		"UPDATE chat.relay SET position = (SELECT max(position) FROM chat.events)"} {
		_, err := f.Pool.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	removed, err := f.PruneSuperseded(t.Context(), eventlog.SupersededKept)
	require.NoError(t, err)
	// Bob's marker has moved three times, and cid's four times. Others have seen each of them move three times.
	require.EqualValues(t, 2+3+2+2, removed)
	require.Contains(t, f.Rows(), "markers (c,cid,4,5)")
	f.RequireRebuild()
}

// Migrating the tables down and up again must lead to the rows that the projection has written.
func TestMigration_OfUnreadMessagesEqualsARebuild(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.example()
	f.happens("ann", group("c", "ann", "bob", "cid"))
	f.happens("ann", &chatv1.MessageSent{ConversationId: "c", MessageId: "m1", Body: "hi", MentionsAll: true},
		&chatv1.MessageSent{ConversationId: "c", MessageId: "m2", Body: "hi", MentionedUserIds: []string{"bob", "ann"}},
		&chatv1.MessageSent{ConversationId: "c", MessageId: "m3", Body: "hi", ThreadId: "m1", MentionedUserIds: []string{"cid"}})
	f.happens("ann", &chatv1.MessageEdited{ConversationId: "c", MessageId: "m2", Body: "hi", MentionedUserIds: []string{"cid"}},
		&chatv1.MessageDeleted{ConversationId: "c", MessageId: "m1"})
	want := f.Rows()
	require.Contains(t, want, "unread_conversations (c,cid,t,t)")
	require.Contains(t, want, "unread_conversations (c,bob,t,f)")
	for _, direction := range []string{"Down", "Up"} {
		_, err := f.Pool.Exec(t.Context(), "SET search_path = chat;"+migration(t, "00006_markers.sql", direction)+
			";RESET search_path", pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	require.Equal(t, want, f.Rows())
	f.RequireRebuild()
}

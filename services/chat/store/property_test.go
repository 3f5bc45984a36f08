//go:build integration

package store_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/membership"
)

var people = []string{"ann", "bob", "cid", "dan"}

// reading is a simple model of a conversation: the members and messages that queries must return.
type reading struct {
	title    string
	members  []string
	roles    map[string]chatv1.Role
	messages []*chatv1.Message
	pins     []string // the message that was pinned last comes last
	version  catalog.Version
}

func (r *reading) apply(actor string, event proto.Message) {
	r.version++
	find := func(id string) *chatv1.Message {
		i := slices.IndexFunc(r.messages, func(m *chatv1.Message) bool { return m.MessageId == id })
		return r.messages[i]
	}
	switch e := event.(type) {
	case *chatv1.ConversationStarted:
		r.title, r.members, r.roles = e.Title, slices.Clone(e.UserIds), map[string]chatv1.Role{actor: chatv1.Role_ROLE_OWNER}
	case *chatv1.MemberAdded:
		r.members = append(r.members, e.UserId)
	case *chatv1.MemberLeft:
		r.members = slices.DeleteFunc(r.members, func(u string) bool { return u == e.UserId })
		delete(r.roles, e.UserId)
		if e.NewOwnerId != "" {
			r.roles[e.NewOwnerId] = chatv1.Role_ROLE_OWNER
		}
	case *chatv1.RoleChanged:
		r.roles[e.UserId] = e.Role
		if e.PreviousOwnerId != "" {
			r.roles[e.PreviousOwnerId] = chatv1.Role_ROLE_ADMIN
		}
	case *chatv1.TitleChanged:
		r.title = e.Title
	case *chatv1.MessageSent:
		r.messages = append(r.messages, &chatv1.Message{MessageId: e.MessageId, Version: int64(r.version), Author: actor,
			Body: e.Body, ReplyTo: e.ReplyTo, ThreadId: e.ThreadId, MentionedUserIds: e.MentionedUserIds})
		if e.ThreadId != "" {
			find(e.ThreadId).ReplyCount++
			find(e.ThreadId).LastReplyBy = actor
		}
	case *chatv1.MessageEdited:
		find(e.MessageId).Body, find(e.MessageId).MentionedUserIds = e.Body, e.MentionedUserIds
	case *chatv1.MessageDeleted:
		m := find(e.MessageId)
		m.Body, m.MentionedUserIds, m.Deleted = "", nil, true
		if e.ThreadId != "" {
			find(e.ThreadId).ReplyCount--
		}
	case *chatv1.MessagePinned:
		r.pins = append(r.pins, e.MessageId)
	case *chatv1.MessageUnpinned:
		r.pins = slices.DeleteFunc(r.pins, func(m string) bool { return m == e.MessageId })
	}
}

var roles = []chatv1.Role{chatv1.Role_ROLE_OWNER, chatv1.Role_ROLE_ADMIN, chatv1.Role_ROLE_MEMBER}

// wish draws a random command about a conversation.
func wish(t *rapid.T, id string, r *reading) proto.Message {
	user := rapid.SampledFrom(people).Draw(t, "user")
	// The text must not contain U+0000, because commands with U+0000 are refused before an aggregate decides about
	// them.
	text := strings.ReplaceAll(rapid.StringN(0, 8, 64).Draw(t, "text"), "\x00", "")
	message := "none"
	if len(r.messages) > 0 {
		message = rapid.SampledFrom(r.messages).Draw(t, "message").MessageId
	}
	return rapid.SampledFrom([]proto.Message{
		&chatv1.AddMember{ConversationId: id, UserId: user}, &chatv1.RemoveMember{ConversationId: id, UserId: user},
		&chatv1.Leave{ConversationId: id},
		&chatv1.SetRole{ConversationId: id, UserId: user, Role: rapid.SampledFrom(roles).Draw(t, "role")},
		&chatv1.SetTitle{ConversationId: id, Title: text},
		&chatv1.SendMessage{ConversationId: id, Body: text, MentionedUserIds: []string{user}},
		&chatv1.SendMessage{ConversationId: id, Body: text, ReplyTo: &message, InThread: true},
		&chatv1.EditMessage{ConversationId: id, MessageId: message, Body: text, MentionedUserIds: []string{user}},
		&chatv1.DeleteMessage{ConversationId: id, MessageId: message},
		&chatv1.PinMessage{ConversationId: id, MessageId: message}, &chatv1.UnpinMessage{ConversationId: id, MessageId: message},
	}).Draw(t, "command")
}

// After a random sequence of commands, the aggregate's state, the log, and the rows of the projection must agree. A
// rebuild of the projection from the log, in batches of other sizes, must lead to the same rows.
func TestConversations_AnySequenceOfCommandsLeavesLogStateAndRowsInAgreement(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rapid.Check(t, func(t *rapid.T) {
		id := uuid.NewString()
		stream, state, want := "conversation:"+id, conversation.New("conversation:"+id), &reading{}
		happens := func(actor string, events []proto.Message) {
			for _, e := range events {
				state.Evolve(catalog.Fact{Actor: actor}, e)
				want.apply(actor, e)
			}
			if len(events) > 0 {
				f.happens(actor, events...)
			}
		}
		origin := catalog.Origin{Actor: people[0], CommandID: uuid.NewString()}
		begun, err := state.Decide(origin, &chatv1.StartGroup{Title: "t", UserIds: people[:2]})
		if err != nil {
			t.Fatal(err)
		}
		happens(origin.Actor, begun)
		for n := range rapid.IntRange(1, 25).Draw(t, "commands") {
			o := catalog.Origin{Actor: rapid.SampledFrom(people).Draw(t, "actor"), CommandID: fmt.Sprint(id, n)}
			events, err := state.Decide(o, wish(t, id, want))
			var refused *refusal.Error
			if err != nil && !errors.As(err, &refused) {
				t.Fatal(err)
			}
			happens(o.Actor, events)
		}
		agree(t, f, stream, id, want)
		agreeOnMessages(t, f, id, want)
	})
	f.RequireRebuild()
}

func agree(t *rapid.T, f *fixture, stream, id string, want *reading) {
	ctx := f.t.Context()
	loaded, err := f.Load(ctx, eventlog.Selection{Stream: stream})
	if err != nil || loaded.Version != want.version {
		t.Fatalf("the log is at version %d, %v; %d events were decided", loaded.Version, err, want.version)
	}
	rooms, _, err := membership.Rooms(ctx, f.Log.Log, people)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range people {
		in := slices.Contains(want.members, user)
		if slices.Contains(rooms[user], stream) != in {
			t.Fatalf("%s is in the room, according to the log: %v; want %v", user, !in, in)
		}
		all, _, err := f.store.Conversations(ctx, user, 0, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(c *chatv1.Conversation) bool { return c.ConversationId == id })
		if (i >= 0) != in {
			t.Fatalf("the list of %s has the conversation: %v; want %v", user, !in, in)
		}
		if in && (catalog.Version(all[i].Version) != want.version || !slices.Equal(all[i].UserIds, want.members) ||
			int(all[i].MemberCount) != len(want.members) || all[i].Title != want.title || all[i].Role != want.role(user)) {
			t.Fatalf("the list has %v, want %+v", all[i], want)
		}
	}
	for _, m := range f.members(id, store.JoinOrder{}, 100).Members {
		if m.Role != want.role(m.UserId) {
			t.Fatalf("%s has the role %v, want %v", m.UserId, m.Role, want.role(m.UserId))
		}
	}
}

func (r *reading) role(user string) chatv1.Role {
	if role := r.roles[user]; role != chatv1.Role_ROLE_UNSPECIFIED {
		return role
	}
	return chatv1.Role_ROLE_MEMBER
}

// agreeOnMessages requires that the main history, all threads and the pins together contain the messages of the model.
func agreeOnMessages(t *rapid.T, f *fixture, id string, want *reading) {
	ctx := f.t.Context()
	everything := []store.Range{{From: 1, To: math.MaxInt64}}
	got := map[string]*chatv1.Message{}
	threads := []string{""}
	for _, m := range want.messages {
		threads = append(threads, m.MessageId)
	}
	for _, thread := range threads {
		all, _, err := f.store.Messages(ctx, id, store.Page{ThreadID: thread, Before: math.MaxInt64, Ranges: everything,
			Member: true, FromAfter: true, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.ThreadId != thread || got[m.MessageId] != nil {
				t.Fatalf("the thread %q contains %v", thread, m)
			}
			got[m.MessageId] = m
		}
	}
	for _, w := range want.messages {
		m := got[w.MessageId]
		if m == nil {
			t.Fatalf("the store has no message %v", w)
		}
		if w.Pinned = slices.Contains(want.pins, w.MessageId); w.LastReplyBy != "" && m.LastReplyAt == nil {
			t.Fatalf("the newest reply has no time: %v", m)
		}
		m.SentAt, m.EditedAt, m.LastReplyAt = nil, nil, nil
		if !proto.Equal(m, w) {
			t.Fatalf("the store has %v, want %v", m, w)
		}
	}
	pins, _, err := f.store.Pins(ctx, id, everything, math.MaxInt64, 100)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(pins)
	if !slices.EqualFunc(pins, want.pins, func(p *chatv1.Pin, m string) bool { return p.Message.MessageId == m }) {
		t.Fatalf("the pins are %v, want %v", pins, want.pins)
	}
}

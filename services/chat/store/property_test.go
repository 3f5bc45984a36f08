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
	members  []string
	messages []*chatv1.Message
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
		r.members = slices.Clone(e.UserIds)
	case *chatv1.MemberAdded:
		r.members = append(r.members, e.UserId)
	case *chatv1.MemberLeft:
		r.members = slices.DeleteFunc(r.members, func(u string) bool { return u == e.UserId })
	case *chatv1.MessageSent:
		r.messages = append(r.messages, &chatv1.Message{MessageId: e.MessageId, Version: int64(r.version), Author: actor, Body: e.Body})
	case *chatv1.MessageEdited:
		find(e.MessageId).Body = e.Body
	case *chatv1.MessageDeleted:
		find(e.MessageId).Body, find(e.MessageId).Deleted = "", true
	}
}

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
		&chatv1.SendMessage{ConversationId: id, Body: text}, &chatv1.SendMessage{ConversationId: id, Body: text},
		&chatv1.EditMessage{ConversationId: id, MessageId: message, Body: text},
		&chatv1.DeleteMessage{ConversationId: id, MessageId: message},
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
			int(all[i].MemberCount) != len(want.members)) {
			t.Fatalf("the list has %v, want %+v", all[i], want)
		}
	}
	messages, _, err := f.store.Messages(ctx, id, store.Page{Before: math.MaxInt64, Ranges: []store.Range{{From: 1, To: math.MaxInt64}},
		FromAfter: true, Limit: 1000})
	if err != nil || len(messages) != len(want.messages) {
		t.Fatalf("the store has %d messages, %v; want %d", len(messages), err, len(want.messages))
	}
	for i, m := range messages {
		w := want.messages[i]
		if m.MessageId != w.MessageId || m.Version != w.Version || m.Author != w.Author || m.Body != w.Body || m.Deleted != w.Deleted {
			t.Fatalf("the store has %v, want %v", m, w)
		}
	}
}

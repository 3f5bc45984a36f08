//go:build integration

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/edumatrix/view"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// notReduced contains the types of events that no reducer applies to an answer, with the reason. An event of every other
// type must change an answer in a step of TestEquivalence, exactly as its reducer says.
var notReduced = map[string]string{
	"chat.conversation_started": "clients load chat.conversations",
	"feed.post_created":         "feed has no queries yet",
	"notification.raised":       "notification has no queries yet",
	"presence.came_online":      "the event is state, which each subscription begins with",
	"presence.went_offline":     "the event is state, which each subscription begins with",
}

// equivalence runs commands one after the other. Around each command, it loads views of several users, and requires
// that the events that the user received explain how each view has changed: answer before + events = answer after.
type equivalence struct {
	t       *testing.T
	catalog *catalog.Catalog
	people  map[string]*person
	inside  []string // the users who receive the event of the next step
	viewers []viewer
	applied map[string]bool // types of events with which a reducer has turned an answer into the next one
}

// viewer is a user with a query. The function create returns a new view of the query, which has no answer yet.
type viewer struct {
	user   string
	create func() view.View
}

// loaded is a view with its answer, and the number of events that its user had received before it was loaded.
type loaded struct {
	viewer
	view.View
	refused string // the code with which the query was refused
	seen    int
}

func (q *equivalence) load(v viewer) loaded {
	q.t.Helper()
	p := q.people[v.user]
	p.mu.Lock()
	l := loaded{viewer: v, View: v.create(), seen: len(p.seen)}
	p.mu.Unlock()
	name, request := l.Query()
	body, err := wirejson.Marshal(request)
	require.NoError(q.t, err)
	var answer json.RawMessage
	if err = p.ask(name, json.RawMessage(body), &answer); err != nil {
		l.refused = codeOf(err)
		require.NotEmpty(q.t, l.refused, err)
		return l
	}
	require.NoError(q.t, wirejson.Unmarshal(answer, l.Answer()), "%s: %s", name, answer)
	return l
}

// step sends a command, which must be committed, and compares all views before and after it. All users in q.inside must
// receive the event.
func (q *equivalence) step(actor, command string, data any) client.Outcome {
	q.t.Helper()
	var before []loaded
	for _, v := range q.viewers {
		before = append(before, q.load(v))
	}
	outcome := q.people[actor].do(command, data)
	require.Equal(q.t, "committed", outcome.Kind, command)
	for _, user := range q.inside {
		q.people[user].awaitVersion(outcome.Stream, outcome.Version)
	}
	for _, l := range before {
		q.compare(command, l, q.load(l.viewer))
	}
	return outcome
}

// compare applies the events that a user has received since a view was loaded, and requires that the result equals the
// answer of the second load. Events of another stream may arrive a little later than the outcome, so compare waits for
// further events while the answers differ.
func (q *equivalence) compare(command string, before, after loaded) {
	q.t.Helper()
	p := q.people[before.user]
	p.until(func() (bool, string) {
		p.mu.Lock()
		events := slices.Clone(p.seen[before.seen:])
		p.mu.Unlock()
		changed, reload := before.create(), before.refused != ""
		proto.Merge(changed.Answer(), before.Answer())
		for _, e := range events {
			read, err := view.Read(q.catalog, e)
			require.NoError(q.t, err)
			err = changed.Apply(read)
			reload = reload || errors.Is(err, view.ErrReload)
			if !reload {
				require.NoError(q.t, err)
			}
		}
		if reload || after.refused != "" {
			return true, ""
		}
		if proto.Equal(changed.Answer(), after.Answer()) {
			for _, e := range events {
				q.applied[e.Type] = q.applied[e.Type] || !proto.Equal(before.Answer(), after.Answer())
			}
			return true, ""
		}
		name, _ := before.Query()
		return false, fmt.Sprintf("how %s changes by %s\nbefore:  %s\nreduced: %s\nafter:   %s", name, command,
			protojson.Format(before.Answer()), protojson.Format(changed.Answer()), protojson.Format(after.Answer()))
	})
}

// TestEquivalence_AnAnswerPlusEventsIsTheNextAnswer runs the scenarios. Together they must cause an event of every type
// in the catalog, except the types in notReduced.
func TestEquivalence_AnAnswerPlusEventsIsTheNextAnswer(t *testing.T) {
	t.Parallel()
	declared, err := catalog.Load()
	require.NoError(t, err)
	m, applied := embedded(t), map[string]bool{}
	for name, scenario := range map[string]func(*equivalence){"Conversations": equivalenceOfConversations} {
		t.Run(name, func(t *testing.T) {
			q := &equivalence{t: t, catalog: declared, people: map[string]*person{}, applied: applied}
			for _, user := range []string{"ann", "bob", "cid"} {
				q.people[user] = m.connect(t, someone(user), 0)
			}
			scenario(q)
		})
	}
	for _, name := range declared.EventNames() {
		if _, exempt := notReduced[name]; !exempt {
			require.True(t, applied[name], "no step applies the event %s to an answer that it changes; add a step and a view", name)
		}
	}
}

// id returns the id of a user.
func (q *equivalence) id(user string) string { return q.people[user].id }

// equivalenceOfConversations causes the events of a group and its messages.
func equivalenceOfConversations(q *equivalence) {
	q.inside = []string{"ann", "bob"}
	var conversation, question string
	watch := func(user string, create func() view.View) { q.viewers = append(q.viewers, viewer{user, create}) }
	for user := range q.people {
		watch(user, func() view.View { return &view.Conversations{UserID: q.id(user)} })
		watch(user, func() view.View { return &view.Members{ConversationID: conversation} })
		watch(user, func() view.View { return &view.History{UserID: q.id(user), ConversationID: conversation} })
		watch(user, func() view.View {
			return &view.History{UserID: q.id(user), ConversationID: conversation, ThreadID: question}
		})
		watch(user, func() view.View { return &view.Pins{UserID: q.id(user), ConversationID: conversation} })
		watch(user, func() view.View { return &view.Markers{UserID: q.id(user), ConversationID: conversation} })
		watch(user, func() view.View { return &view.Unread{UserID: q.id(user)} })
		watch(user, func() view.View { return &view.Reactions{ConversationID: conversation, MessageID: question} })
		watch(user, func() view.View { return &view.Edits{ConversationID: conversation, MessageID: question} })
	}
	conversation, question = "none", "none" // so that the queries are refused until there is a conversation
	started := q.step("ann", "chat.start_group", map[string]any{"title": "maths", "user_ids": []string{q.id("bob")}})
	conversation = conversationOf(started)
	in := func(more ...any) map[string]any {
		data := map[string]any{"conversation_id": conversation}
		for i := 0; i < len(more); i += 2 {
			data[more[i].(string)] = more[i+1]
		}
		return data
	}
	// send sends a message and returns its id.
	send := func(user string, more ...any) string {
		o := q.step(user, "chat.send_message", in(more...))
		return field(q.people[user].awaitVersion(o.Stream, o.Version), "message_id")
	}
	q.step("ann", "chat.set_title", in("title", "maths 7b"))
	q.step("ann", "chat.set_picture", in("picture", "https://school.example/7b.png"))
	q.step("ann", "chat.set_role", in("user_id", q.id("bob"), "role", "admin"))
	question = send("bob", "body", "who?", "mentioned_user_ids", []string{q.id("ann")})
	answer := send("ann", "body", "you", "reply_to", question, "in_thread", true)
	send("bob", "body", "me?", "reply_to", answer, "in_thread", true)
	send("bob", "body", "quoted", "reply_to", question, "mentions_all", true)
	for _, r := range []struct{ user, command, emoji string }{
		{"ann", "chat.add_reaction", "👍"}, {"bob", "chat.add_reaction", "👍"}, {"bob", "chat.add_reaction", ":party:"},
		{"ann", "chat.remove_reaction", "👍"}, {"ann", "chat.add_reaction", "🎉"}} {
		q.step(r.user, r.command, in("message_id", question, "emoji", r.emoji))
	}
	// Only the user's own devices get the event that a marker has moved.
	read := func(user, command, field string, version int) {
		q.inside = []string{user}
		q.step(user, command, in(field, version))
		q.inside = []string{"ann", "bob"}
	}
	read("ann", "chat.mark_read", "up_to", 6)
	read("ann", "chat.mark_read", "up_to", 1_000) // the newest version
	read("ann", "chat.mark_unread", "from", 5)
	read("bob", "chat.mark_read", "up_to", 1_000)
	q.step("bob", "chat.edit_message", in("message_id", question, "body", "who is it?"))
	q.step("bob", "chat.pin_message", in("message_id", question))
	q.step("ann", "chat.delete_message", in("message_id", answer))
	q.step("ann", "chat.unpin_message", in("message_id", question))
	q.step("ann", "chat.pin_message", in("message_id", question))
	q.step("bob", "chat.delete_message", in("message_id", question)) // this also unpins the message

	q.inside = []string{"ann", "bob", "cid"}
	q.step("bob", "chat.add_member", in("user_id", q.id("cid")))
	q.step("ann", "chat.set_role", in("user_id", q.id("cid"), "role", "owner"))
	q.step("cid", "chat.leave", in()) // ann, the admin who joined first, becomes the owner again
	q.inside = []string{"ann", "bob"}
	q.step("ann", "chat.remove_member", in("user_id", q.id("bob")))
	q.inside = []string{"ann"}
	send("ann", "body", "alone")
}

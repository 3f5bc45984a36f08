package conversation_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

// record is an event as the log loads it for a decision: without personal fields.
type record struct {
	actor, subject string
	event          proto.Message
}

// history is a model of a stream in the log.
type history struct {
	t        *rapid.T
	catalog  *catalog.Catalog
	records  []record
	messages []string
}

func (h *history) append(actor string, m proto.Message) {
	declared, ok := h.catalog.EventOf(m)
	if !ok {
		h.t.Fatalf("%T is not declared", m)
	}
	plain, _ := declared.Split(m)
	h.records = append(h.records, record{actor, declared.Place(m, catalog.Origin{Actor: actor}).Subject, plain})
	if s, ok := m.(*chatv1.MessageSent); ok {
		h.messages = append(h.messages, s.GetMessageId())
	}
}

// load returns a state to which events of the history were applied: if the parameter all is true, every event;
// otherwise the events without a subject and the events of the given subjects.
func (h *history) load(all bool, subjects ...string) *conversation.State {
	s := conversation.New(stream)
	h.into(s, 0, all, subjects...)
	return s
}

// into applies events of the history to a state. If the parameter all is true, these are all events. Otherwise they are
// all events of the given subjects, and the events without a subject from the index after on.
func (h *history) into(s *conversation.State, after int, all bool, subjects ...string) {
	for i, r := range h.records {
		if all || r.subject == "" && i >= after || slices.Contains(subjects, r.subject) {
			s.Evolve(catalog.Fact{Actor: r.actor}, r.event)
		}
	}
}

// rules is a simple model of the rules about the members of a conversation.
type rules struct {
	kind    chatv1.Kind
	members []string // in the order of joining
	roles   map[string]chatv1.Role
	pins    []string
}

func (r *rules) leads(user string) bool { return r.roles[user] == owner || r.roles[user] == admin }

func (r *rules) check(t *rapid.T, actor string, m proto.Message) {
	fail := func() { t.Fatalf("%s must not cause %T %v in %+v", actor, m, m, r) }
	is := func(user string) bool { return slices.Contains(r.members, user) }
	if _, start := m.(*chatv1.ConversationStarted); !start && !is(actor) {
		fail()
	}
	switch e := m.(type) {
	case *chatv1.ConversationStarted:
		if r.kind != chatv1.Kind_KIND_UNSPECIFIED || !slices.Contains(e.UserIds, actor) {
			fail()
		}
		if e.Kind == chatv1.Kind_KIND_DIRECT && len(e.UserIds) != 2 {
			fail()
		}
		r.kind, r.members, r.roles = e.Kind, slices.Clone(e.UserIds), map[string]chatv1.Role{}
		if e.Kind == chatv1.Kind_KIND_GROUP {
			r.roles[actor] = owner
		}
	case *chatv1.MemberAdded:
		if r.kind != chatv1.Kind_KIND_GROUP || is(e.UserId) {
			fail()
		}
		r.members = append(r.members, e.UserId)
	case *chatv1.MemberLeft:
		removed := e.UserId != actor
		if r.kind != chatv1.Kind_KIND_GROUP || !is(e.UserId) || removed && (!r.leads(actor) || r.roles[e.UserId] == owner) ||
			removed && r.roles[e.UserId] == admin && r.roles[actor] != owner {
			fail()
		}
		r.members = slices.DeleteFunc(r.members, func(u string) bool { return u == e.UserId })
		delete(r.roles, e.UserId)
		if e.NewOwnerId != "" {
			r.roles[e.NewOwnerId] = owner
		}
	case *chatv1.RoleChanged:
		if r.roles[actor] != owner || !is(e.UserId) {
			fail()
		}
		if e.Role == owner {
			r.roles[actor] = admin
		}
		r.roles[e.UserId] = e.Role
	case *chatv1.MessagePinned:
		if slices.Contains(r.pins, e.MessageId) || r.kind == chatv1.Kind_KIND_GROUP && !r.leads(actor) {
			fail()
		}
		r.pins = append(r.pins, e.MessageId)
	case *chatv1.MessageUnpinned:
		r.pins = slices.DeleteFunc(r.pins, func(m string) bool { return m == e.MessageId })
	case *chatv1.MessageDeleted:
		if slices.Contains(r.pins, e.MessageId) {
			fail()
		}
	}
	owners := 0
	for user, role := range r.roles {
		if role == owner {
			owners++
		}
		if !is(user) {
			t.Fatalf("%s has a role, but is not a member: %+v", user, r)
		}
	}
	if r.kind == chatv1.Kind_KIND_GROUP && len(r.members) > 0 && owners != 1 {
		t.Fatalf("a group has %d owners: %+v", owners, r)
	}
	if sorted := slices.Sorted(slices.Values(r.members)); len(slices.Compact(sorted)) != len(r.members) {
		t.Fatalf("a user is a member twice: %v", r.members)
	}
}

var people = []string{"ann", "bob", "cid", "dan"}

func command(t *rapid.T, h *history) proto.Message {
	user := rapid.SampledFrom(people).Draw(t, "user")
	message := rapid.SampledFrom(append([]string{"none"}, h.messages...)).Draw(t, "message")
	return rapid.SampledFrom([]proto.Message{
		&chatv1.StartDirect{UserId: user},
		&chatv1.StartGroup{Title: "t", UserIds: rapid.SliceOfN(rapid.SampledFrom(people), 0, 4).Draw(t, "users")},
		&chatv1.AddMember{ConversationId: id, UserId: user}, &chatv1.AddMember{ConversationId: id, UserId: user},
		&chatv1.RemoveMember{ConversationId: id, UserId: user},
		&chatv1.Leave{ConversationId: id},
		&chatv1.SendMessage{ConversationId: id, Body: "text"}, &chatv1.SendMessage{ConversationId: id, Body: "text"},
		&chatv1.EditMessage{ConversationId: id, MessageId: message, Body: "other"},
		&chatv1.DeleteMessage{ConversationId: id, MessageId: message},
		&chatv1.SendMessage{ConversationId: id, Body: "text", ReplyTo: &message, InThread: rapid.Bool().Draw(t, "in a thread")},
		&chatv1.SetRole{ConversationId: id, UserId: user, Role: rapid.SampledFrom([]chatv1.Role{owner, admin, member}).Draw(t, "role")},
		&chatv1.SetTitle{ConversationId: id, Title: "t"},
		&chatv1.PinMessage{ConversationId: id, MessageId: message}, &chatv1.UnpinMessage{ConversationId: id, MessageId: message},
	}).Draw(t, "command")
}

// Users send a random sequence of commands. No event may break a rule. A decision must not change the state. The
// decision must be the same on three states: one that is kept from command to command, as in the service; one to
// which only the events about the command's subject (a message) and those without a subject were applied; and one to
// which the whole stream was applied.
func TestDecide_IsTheSameOnEveryWayToTheState(t *testing.T) {
	t.Parallel()
	declared, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		h := &history{t: t, catalog: declared}
		r := &rules{}
		kept, version := conversation.New(stream), 0
		for n := range rapid.IntRange(1, 60).Draw(t, "commands") {
			c := command(t, h)
			o := catalog.Origin{Actor: rapid.SampledFrom(people).Draw(t, "actor"), CommandID: fmt.Sprint(n)}
			d, ok := declared.CommandOf(c)
			if !ok {
				t.Fatalf("%T is not declared", c)
			}
			var subjects []string
			if s := d.Subject(c, o); s != "" {
				subjects = append(subjects, s)
				h.into(kept, version, false, subjects...)
			}
			got := decidetest.Decide(t, kept, o, c)
			for name, state := range map[string]*conversation.State{
				"loaded": h.load(false, subjects...), "folded from all": h.load(true)} {
				if again := decidetest.Decide(t, state, o, c); !again.Equal(got) {
					t.Fatalf("%T: %+v; %s: %+v", c, got, name, again)
				}
			}
			for _, e := range got.Events {
				r.check(t, o.Actor, e)
				kept.Evolve(catalog.Fact{Actor: o.Actor}, e) // with the texts of messages, as decided
				h.append(o.Actor, e)                         // without the texts of messages, as loaded from the log
			}
			version = len(h.records)
			if rapid.Bool().Draw(t, "the run ends") {
				kept.Forget()
			}
		}
	})
}

// Each of two users starts a direct conversation with the other user. Both must address the same stream.
func TestStartDirect_BothAddressOneConversation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		user := rapid.StringMatching(`[A-Za-z0-9._@-]{1,12}`)
		a, b := user.Draw(t, "a"), user.Draw(t, "b")
		if catalog.PairID(a, b) != catalog.PairID(b, a) {
			t.Fatalf("%s and %s address two different streams", a, b)
		}
	})
}

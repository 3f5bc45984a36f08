package catalog

import (
	"errors"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
)

func load(t *testing.T) *Catalog {
	t.Helper()
	c, err := Load()
	require.NoError(t, err)
	return c
}

func TestAddress_MayHaveSeveralPlaceholders(t *testing.T) {
	mark, _ := load(t).Command("toy.mark_read")
	by := Origin{Actor: "alice", CommandID: "1"}
	m := &toyv1.MarkRead{CircleId: "7"}
	require.Equal(t, "bookmark:7:alice", mark.Stream(m, by))
	require.Equal(t, "circle:7", mark.MemberOf(m, by))
	require.NoError(t, mark.Check(m))
	require.ErrorContains(t, mark.Check(&toyv1.MarkRead{CircleId: "7;8"}), "circle_id")

	users, err := parseTemplate((&chatv1.ConversationStarted{}).ProtoReflect().Descriptor(), "seat:{conversation_id}:{user_ids}")
	require.NoError(t, err)
	require.Equal(t, []string{"seat:7:a", "seat:7:b"},
		users.each(&chatv1.ConversationStarted{ConversationId: "7", UserIds: []string{"a", "b"}}, by))
	for _, wrong := range []string{"seat:{user_ids}:{user_ids}", "seat:{conversation_id", "seat:{conversation_id}{title}", "seat:{nobody}"} {
		_, err := parseTemplate((&chatv1.ConversationStarted{}).ProtoReflect().Descriptor(), wrong)
		require.Error(t, err, wrong)
	}
}

func TestTimers_AreDerivedFromTheEventOnly(t *testing.T) {
	c := load(t)
	until := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	rang, _ := c.Event("toy.bell_rang")
	set, cancelled := c.Timers(rang, &toyv1.BellRang{BellId: "7", Until: timestamppb.New(until)}, Origin{})
	require.Empty(t, cancelled)
	require.Len(t, set, 1)
	require.Equal(t, "ring", set[0].Key)
	require.Equal(t, "toy.silence", set[0].Command)
	require.Equal(t, until.Truncate(time.Microsecond), set[0].Due)
	require.True(t, proto.Equal(&toyv1.Silence{BellId: "7"}, set[0].Body))

	set, cancelled = c.Timers(rang, &toyv1.BellRang{BellId: "7"}, Origin{})
	require.Empty(t, set)
	require.Equal(t, []string{"ring"}, cancelled, "an event without a time cancels the timer that it declares")
	answered, _ := c.Event("toy.bell_answered")
	_, cancelled = c.Timers(answered, &toyv1.BellAnswered{BellId: "7"}, Origin{})
	require.Equal(t, []string{"ring"}, cancelled)
}

func TestPlace_ReturnsWhenAnEventExpires(t *testing.T) {
	c := load(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m := &toyv1.StoryShown{StoryId: "7", ExpiresAt: timestamppb.New(at)}
	e, _ := c.EventOf(m)
	require.Equal(t, at, e.Place(m, Origin{}).Expires)
	require.Zero(t, e.Place(&toyv1.StoryShown{StoryId: "7"}, Origin{}).Expires)
}

func TestRequires_ReturnsThePartThatACommandNeeds(t *testing.T) {
	c := load(t)
	vote, _ := c.Command("toy.vote")
	by := Origin{Actor: "ann"}
	m := &toyv1.Vote{StoryId: "7", PageId: "8"}
	require.Equal(t, Part{Name: "page", Stream: "story:7", Subject: "8", DeletedCode: "page_torn"}, vote.Requires(m, by))
	require.NoError(t, vote.Check(m))
	require.ErrorContains(t, vote.Check(&toyv1.Vote{StoryId: "7"}), "page_id")
	mark, _ := c.Command("toy.mark_read")
	require.Zero(t, mark.Requires(&toyv1.MarkRead{CircleId: "7"}, by))
}

// The test reads declarations that the catalog contains already, as if they were those of another service. Each error
// must name the declaration that occurs twice.
func TestLoad_RefusesDeclarationsThatOccurTwice(t *testing.T) {
	c := load(t)
	presence := presencev1.File_edumatrix_presence_v1_presence_proto
	require.ErrorContains(t, errors.Join(c.readOptions("feed", presence)...), "presence is subscribable in presence and in feed")
	require.ErrorContains(t, errors.Join(c.readOptions("feed", presence)...), "connections of users are declared by")
	history := chatv1.File_edumatrix_chat_v1_queries_proto.Services().Get(0).Methods().ByName("History")
	require.ErrorContains(t, c.readMethod("feed", history), "the name chat.history is used already")
}

// In each case, the function damage makes a declaration contradict another one, or removes a part of it. checkAll,
// which Load calls, must return an error that names the damaged declaration.
func TestLoad_RefusesContradictoryDeclarations(t *testing.T) {
	for _, test := range []struct {
		name     string
		damage   func(*Catalog)
		wantText string
	}{
		{"a topic with a log's events and state", func(c *Catalog) {
			c.events["toy.note_written"].Class = routingv1.Class_CLASS_EPHEMERAL
		}, "topic toy-events contains logged events and state"},
		{"a room without an event that opens it", func(c *Catalog) {
			c.events["toy.circle_opened"].opens = nil
		}, "no event of toy opens circle:{circle_id}"},
		{"a count of the members of no room", func(c *Catalog) {
			c.commands["toy.ring"].CountMembersUpTo = 3
		}, "toy.ring: it counts members, but has no member_of"},
		{"a timer that sends a public command", func(c *Catalog) {
			c.commands["toy.silence"].Public = true
		}, "is not an internal command of toy"},
		{"a timer without a time", func(c *Catalog) {
			c.events["toy.bell_rang"].timers[0].due = nil
		}, "has no time"},
		{"a kind of stream without an event", func(c *Catalog) {
			require.NoError(t, c.addStreamKind("toy", &routingv1.StreamKind{Kind: "kite", Topic: "toy-events",
				Class: routingv1.Class_CLASS_DURABLE, Id: "{kite_id}", Rooms: []string{"kite:{kite_id}"}}))
		}, `stream kind "kite" of toy: no event is of this kind`},
		{"a kind of stream on a topic of another service", func(c *Catalog) {
			c.kinds["circle"].topic = "chat-events"
		}, `stream kind "circle" of toy: topic chat-events belongs to chat`},
		{"a kind of stream on no topic", func(c *Catalog) {
			c.kinds["circle"].topic = "toy-event"
		}, `topic "toy-event" is not declared`},
		{"a kind of stream without a class", func(c *Catalog) { c.kinds["circle"].class = 0 }, "has no class"},
		{"a kind of stream without a room", func(c *Catalog) { c.kinds["circle"].rooms = nil }, "the events have no room"},
		{"a kind of stream whose id has no field", func(c *Catalog) { c.kinds["circle"].id = "all" }, `id "all" names no field`},
		{"an event of a room's members without the key of the room", func(c *Catalog) { c.kinds["seen"].key = "" },
			`the event chat.messages_seen is delivered to conversation:{conversation_id}, so its key has to be`},
		{"a key with a field that the id lacks", func(c *Catalog) { c.kinds["bookmark"].key = "circle:{note_id}" },
			"its key names {note_id}, which its id does not contain"},
		{"a key of an id that is not made of fields", func(c *Catalog) {
			c.kinds["bookmark"].key, c.kinds["bookmark"].id = "circle:{circle_id}", "of-{circle_id}"
		}, "its id has to consist of fields with colons between them"},
		{"a dense kind that is not durable", func(c *Catalog) {
			c.kinds["bookmark"].dense = true
		}, `stream kind "bookmark" of toy: it is dense, but not durable`},
		{"an event with a subject that no command has", func(c *Catalog) {
			c.events["toy.note_written"].subject = c.events["toy.note_written"].stream
		}, "no command on streams of kind diary has the subject"},
		{"an address with an optional field", func(c *Catalog) {
			c.commands["chat.send_message"].stream = c.commands["chat.send_message"].subject
		}, "chat.send_message: the optional field reply_to must not be part of an address"},
		{"a required part without a name", func(c *Catalog) { c.commands["toy.vote"].requires.name = "" }, "toy.vote: requires: the part has no name"},
		{"a required part of another service's stream", func(c *Catalog) { c.kinds["story"].owner = "chat" },
			"toy.vote: requires: story:{story_id} is not a stream of toy"},
		{"a required part of the command's own stream", func(c *Catalog) {
			c.commands["toy.vote"].requires.stream = c.commands["toy.vote"].stream
		}, "is the command's own stream"},
		{"a required part that no event redacts", func(c *Catalog) { c.events["toy.page_torn"].Redacts = false },
			`no event of story:{story_id} has the subject "{page_id}" and redacts it`},
		{"a required part with an undeclared code", func(c *Catalog) { c.commands["toy.vote"].requires.deletedCode = "torn" },
			`toy does not declare the code "torn"`},
		{"a code of a domain that all services have", func(c *Catalog) {
			c.refusals[0].Code = "not_found"
		}, "the code not_found is declared by all services already"},
		{"a code of two domains", func(c *Catalog) {
			c.refusals = append(c.refusals, Refusal{"conversation_full", "feed", "It is not."})
		}, "feed: the code conversation_full is declared by chat already"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := load(t)
			test.damage(c)
			err := c.checkAll()
			require.ErrorContains(t, err, test.wantText)
		})
	}
	require.NoError(t, load(t).checkAll())
}

// The stream kind of an event must be declared by the event's own service, and only one service may declare a kind.
func TestLoad_RefusesAnUnknownOrSecondStreamKind(t *testing.T) {
	c := load(t)
	for kind, wrong := range map[string]string{
		"conversatoin": `the stream kind "conversatoin" is not declared`,
		"post":         "the stream kind post belongs to feed",
	} {
		_, err := c.newEvent("chat", (&chatv1.MessageSent{}).ProtoReflect().Descriptor(), &routingv1.Event{Name: "chat.pinned", Kind: kind})
		require.ErrorContains(t, err, wrong)
	}
	err := c.addStreamKind("feed", &routingv1.StreamKind{Kind: "conversation"})
	require.ErrorContains(t, err, "feed: the stream kind conversation is declared by chat already")
}

// The package catalog must import the generated packages of all services, so that every program has all declarations.
// The package toy is not required, because only tests use it.
func TestLoad_LinksThePackageOfEveryService(t *testing.T) {
	source, err := parser.ParseFile(token.NewFileSet(), "catalog.go", nil, parser.ImportsOnly)
	require.NoError(t, err)
	var linked []string
	for _, i := range source.Imports {
		linked = append(linked, strings.Trim(i.Path.Value, `"`))
	}
	folders, err := filepath.Glob("../edumatrix/*/v1")
	require.NoError(t, err)
	require.NotEmpty(t, folders)
	for _, folder := range folders {
		owner := filepath.Base(filepath.Dir(folder))
		if !slices.Contains(notServices, owner) && owner != "toy" {
			require.Contains(t, linked, "github.com/edumatrix/interlinked/proto/gen/edumatrix/"+owner+"/v1")
		}
	}
}

// An event has the stream, topic and class of its kind. Its rooms are those of the kind, followed by the rooms that the
// event declares itself.
func TestEvent_HasTheStreamTopicClassAndRoomsOfItsKind(t *testing.T) {
	e, _ := load(t).Event("feed.post_created")
	require.Equal(t, "post", e.Kind())
	require.Equal(t, "post:{post_id}", e.Stream())
	require.Equal(t, "post-events", e.Topic)
	require.Equal(t, routingv1.Class_CLASS_DURABLE, e.Class)
	require.Equal(t, []string{"post:{post_id}", "author:{author_id}"}, e.Rooms())
}

func TestKeyOf_IsTheStreamOrTheDeclaredKey(t *testing.T) {
	c := load(t)
	for stream, key := range map[string]string{
		"conversation:7": "conversation:7", "reactions:7:8": "conversation:7", "seen:7:ann": "conversation:7",
		"seen:a%3Ab:ann": "conversation:a%3Ab", "marker:7:ann": "marker:7:ann", "unknown:7:8": "unknown:7:8",
	} {
		require.Equal(t, key, c.KeyOf(stream))
	}
}

func TestFact_RecordsThatItsTimeWasRead(t *testing.T) {
	read := false
	f := NewFact("alice", 7, time.Unix(1, 0), &read)
	require.False(t, read)
	require.Equal(t, time.Unix(1, 0), f.At())
	require.True(t, read)
	require.Zero(t, Fact{Actor: "alice"}.At())
}

func TestKindOf(t *testing.T) {
	require.Equal(t, "conversation", KindOf("conversation:7"))
	require.Equal(t, "marker", KindOf("marker:7:alice"))
	require.False(t, strings.ContainsAny(KindOf("x"), ":"))
}

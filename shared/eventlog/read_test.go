package eventlog

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// on returns a write with one command on a conversation, which may have any version.
func on(conversation, commandID string, events ...proto.Message) Write {
	return Write{Stream: "conversation:" + conversation, Expected: AnyVersion, Commands: []Decided{{
		Actor: "alice", CommandID: commandID, Type: "chat.any", Correlation: "x", Events: events,
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}
}

func positions(events []envelope.Event) (all []catalog.Position) {
	for _, e := range events {
		all = append(all, e.Position)
	}
	return all
}

func TestRead_ReturnsEventsAsWritten(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	m := &chatv1.ConversationStarted{ConversationId: "1", Kind: chatv1.Kind_KIND_GROUP, Title: "secret",
		UserIds: []string{"alice", "bob"}}
	now := commit(t, l, on("1", "c1", m)).At
	page, err := l.Read(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	got := page.Events[0]
	var read chatv1.ConversationStarted
	if err := proto.Unmarshal(got.Body, &read); err != nil || !proto.Equal(&read, m) {
		t.Errorf("body %v %v", &read, err)
	}
	got.Body = nil
	if page.Incarnation == "" || page.Incarnation != l.Incarnation() {
		t.Errorf("the page has incarnation %q, the log %q", page.Incarnation, l.Incarnation())
	}
	want := envelope.Event{ID: eventID("chat", incarnation{}, "conversation:1", 1).String(), Type: "chat.conversation_started",
		Source: "chat", Stream: "conversation:1", Version: 1, Position: 1, Time: now,
		Actor: "alice", Cause: "c1", Correlation: "x", Class: routingv1.Class_CLASS_DURABLE,
		Rooms: []string{"conversation:1"}, Answers: true, CommandType: "chat.any",
		Opens:       []catalog.Membership{{Room: "conversation:1", Users: []string{"alice", "bob"}}},
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Incarnation: page.Incarnation}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	record := page.Records()[0]
	again, err := envelope.ReadRecord(record)
	if err != nil || record.GetTopic() != "chat-events" || !reflect.DeepEqual(again, page.Events[0]) {
		t.Errorf("%+v %v", again, err)
	}
}

func TestRead_InPages(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	for i := range 10 {
		commit(t, l, said(fmt.Sprint(i%2), fmt.Sprint(i)))
	}
	for name, test := range map[string]struct {
		q        Query
		want     []catalog.Position
		complete catalog.Position
	}{
		"all":              {Query{}, []catalog.Position{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 10},
		"a page":           {Query{After: 2, Limit: 3}, []catalog.Position{3, 4, 5}, 5},
		"until":            {Query{After: 2, Until: 4}, []catalog.Position{3, 4}, 4},
		"until after head": {Query{After: 8, Until: 40}, []catalog.Position{9, 10}, 10},
		"after head":       {Query{After: 12}, nil, 12},
		"a stream":         {Query{Stream: "conversation:1"}, []catalog.Position{2, 4, 6, 8, 10}, 10},
		"a stream's page":  {Query{Stream: "conversation:1", After: 3, Limit: 2}, []catalog.Position{4, 6}, 6},
		"a stream until":   {Query{Stream: "conversation:0", After: 3, Until: 8}, []catalog.Position{5, 7}, 8},
		"above a version":  {Query{Stream: "conversation:1", AfterVersion: 2, Limit: 2}, []catalog.Position{6, 8}, 8},
		"the next page":    {Query{Stream: "conversation:1", AfterVersion: 2, After: 8}, []catalog.Position{10}, 10},
		"above the newest": {Query{Stream: "conversation:1", AfterVersion: 9}, nil, 10},
		"a topic":          {Query{Topic: "chat-events", Limit: 2}, []catalog.Position{1, 2}, 2},
		"another topic":    {Query{Topic: "file-events"}, nil, 10},
	} {
		page, err := l.Read(t.Context(), test.q)
		got := positions(page.Events)
		if err != nil || !slices.Equal(got, test.want) || page.Complete != test.complete || page.Head != 10 {
			t.Errorf("%s: %v complete %d head %d %v", name, got, page.Complete, page.Head, err)
		}
	}
}

func TestLoad_ReadsTheSelectedEvents(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, on("1", "c", started("1", "alice"), sent("1", "a", "x"),
		&chatv1.MemberAdded{ConversationId: "1", UserId: "bob"},
		sent("1", "b", "x"), &chatv1.MessageEdited{ConversationId: "1", MessageId: "a", Body: "y"}, sent("1", "c", "x")))
	commit(t, l, said("2", "other"))
	for name, test := range map[string]struct {
		s        Selection
		versions []catalog.Version
		version  catalog.Version
	}{
		"the stream itself": {Selection{Stream: "conversation:1"}, []catalog.Version{1, 3}, 6},
		"and subjects":      {Selection{Stream: "conversation:1", Subjects: []string{"a", "z"}}, []catalog.Version{1, 2, 3, 5}, 6},
		"above a version":   {Selection{Stream: "conversation:1", After: 1, Subjects: []string{"a"}}, []catalog.Version{2, 3, 5}, 6},
		"nothing new":       {Selection{Stream: "conversation:1", After: 6}, nil, 6},
		"the newest":        {Selection{Stream: "conversation:1", After: 6, Subjects: []string{"c"}}, []catalog.Version{6}, 6},
		"an empty subject":  {Selection{Stream: "conversation:1", After: 6, Subjects: []string{""}}, nil, 6},
		"no such stream":    {Selection{Stream: "conversation:3"}, nil, 0},
	} {
		got, err := l.Load(t.Context(), test.s)
		var versions []catalog.Version
		for _, e := range got.Events {
			versions = append(versions, e.Version)
		}
		if err != nil || !slices.Equal(versions, test.versions) || got.Version != test.version {
			t.Errorf("%s: %v at %d, %v", name, versions, got.Version, err)
		}
	}
	got, _ := l.Load(t.Context(), Selection{Stream: "conversation:1"})
	var m chatv1.ConversationStarted
	if err := proto.Unmarshal(got.Events[0].Body, &m); err != nil || m.Title != "" || len(m.UserIds) != 1 {
		t.Errorf("decisions see %v, %v", &m, err)
	}
}

func TestCommit_RedactsEarlierMessages(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	commit(t, l, on("1", "c1", sent("1", "a", "secret"), sent("1", "b", "stays")))
	commit(t, l, on("2", "c2", sent("2", "a", "stays")))
	commit(t, l, on("1", "c3", &chatv1.MessageEdited{ConversationId: "1", MessageId: "a", Body: "secret"},
		&chatv1.MessageDeleted{ConversationId: "1", MessageId: "a"}, sent("1", "a", "later")))
	page, err := l.Read(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range page.Events {
		m, ok := l.o.Catalog.Event(e.Type)
		body := m.Type.New().Interface()
		if err := proto.Unmarshal(e.Body, body); err != nil || !ok {
			t.Fatal(err)
		}
		f := body.ProtoReflect().Descriptor().Fields().ByName("body")
		text := "-"
		if f != nil {
			text = body.ProtoReflect().Get(f).String()
		}
		got = append(got, fmt.Sprint(e.Stream, e.Version, text, e.Redacted))
	}
	want := []string{"conversation:11true", "conversation:12staysfalse", "conversation:21staysfalse",
		"conversation:13true", "conversation:14-false", "conversation:15laterfalse"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	var left int
	err = l.o.Pool.QueryRow(t.Context(), `SELECT count(*) FROM chat.events
WHERE personal LIKE '%secret%' OR body LIKE '%secret%'`).Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d rows still contain the text: %v", left, err)
	}
}

package envelope_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

func TestEvent_IsReadAsItWasWritten(t *testing.T) {
	e := envelope.Event{
		ID: "e1", Type: "chat.member_added", Source: "chat", Stream: "conversation:7", Version: 3, Position: 40,
		Before: 38, Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Actor: "alice", Cause: "c1", Correlation: "x",
		Class: routingv1.Class_CLASS_DURABLE, Rooms: []string{"conversation:7", "user:bob"},
		Opens:   []catalog.Membership{{Room: "conversation:7", Users: []string{"bob", "carol"}}},
		Closes:  []catalog.Membership{{Room: "conversation:8", Users: []string{"dan"}}},
		Subject: "m1", Answers: true, CommandType: "chat.add_member", Redacted: true,
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Body: []byte{1, 2},
		Incarnation: "3f1c5a0b9d24", Epoch: 2, Partitions: 4,
	}
	got, err := envelope.ReadEvent(e.Message())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, e) {
		t.Fatalf("got  %+v\nwant %+v", got, e)
	}
}

func TestRecord_IsReadAsItWasWritten(t *testing.T) {
	e := envelope.Event{ID: "e1", Type: "chat.leave", Source: "chat", Stream: "conversation:7", Version: 3, Position: 40,
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Class: routingv1.Class_CLASS_DURABLE, Body: []byte{1, 2}}
	r := e.Record("chat-events")
	if r.GetTopic() != "chat-events" || r.GetKey() != e.Stream {
		t.Fatalf("%v", r)
	}
	if got, err := envelope.ReadRecord(r); err != nil || !reflect.DeepEqual(got, e) {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestPosition_IsRecognised(t *testing.T) {
	got, err := envelope.ReadEvent(envelope.Position("chat", 9, 4).Message())
	if err != nil || !got.IsPosition() || got.Position != 9 || got.Before != 4 || got.Source != "chat" {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestFence_IsReadAsItWasWritten(t *testing.T) {
	e := envelope.Position("chat", 9, 4)
	e.Incarnation, e.Epoch, e.Partitions, e.Fence = "3f1c5a0b9d24", 2, 4, true
	if got, err := envelope.ReadEvent(e.Message()); err != nil || !reflect.DeepEqual(got, e) {
		t.Fatalf("got  %+v %v\nwant %+v", got, err, e)
	}
}

// A record of an earlier release has no headers for the incarnation, the epoch and the number of partitions. It must be
// readable, and a record without these values must be written without the headers.
func TestEvent_OfAnEarlierReleaseIsRead(t *testing.T) {
	m := envelope.Position("chat", 9, 4).Message()
	got, err := envelope.ReadEvent(m)
	if err != nil || got.Incarnation != "" || got.Epoch != 0 || got.Partitions != 0 || got.Fence {
		t.Fatalf("%+v %v", got, err)
	}
	for k := range m.Metadata {
		if strings.Contains(k, "incarnation") || strings.Contains(k, "epoch") || strings.Contains(k, "partitions") {
			t.Errorf("header %s is written without a value", k)
		}
	}
}

func TestCommand_IsReadAsItWasWritten(t *testing.T) {
	c := envelope.Command{ID: "c1", Type: "chat.leave", Stream: "conversation:7", Actor: "bob",
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Expires: time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC),
		Correlation: "x", Body: []byte{3}}
	got, err := envelope.ReadCommand(c.Message())
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestReadEvent_NamesTheMissingHeader(t *testing.T) {
	m := envelope.Event{ID: "e", Type: "chat.message_sent", Source: "chat", Stream: "s", Time: time.Now()}.Message()
	delete(m.Metadata, "ce_position")
	if _, err := envelope.ReadEvent(m); err == nil || !strings.Contains(err.Error(), "ce_position") {
		t.Fatalf("got %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("ce_position", "x")
	f.Add("ce_opens", "=;=,;")
	f.Fuzz(func(t *testing.T, key, value string) {
		m := envelope.Event{ID: "e", Type: "t", Source: "chat", Stream: "s", Time: time.Now()}.Message()
		m.Metadata.Set(key, value)
		_, _ = envelope.ReadEvent(m)
		_, _ = envelope.ReadCommand(&message.Message{Metadata: m.Metadata})
	})
}

//go:build integration

package e2e

import (
	"encoding/json"
	"testing"

	"github.com/edumatrix/interlinked/shared/client"
)

// upTo returns the version up to which an event says that a user has read a conversation.
func upTo(e client.Event) int64 {
	var data struct {
		UpTo int64 `json:"up_to"`
	}
	_ = json.Unmarshal(e.Data, &data) // 0 if the event has no such field
	return data.UpTo
}

func (p *person) awaitMarker(event, user string, version int64) client.Event {
	p.t.Helper()
	return p.await(event, func(e client.Event) bool {
		return e.Type == event && field(e, "user_id") == user && upTo(e) == version
	})
}

// Bob reads a group on one device. His other device and the members of the group must learn it live, and only his own
// devices may learn that he marks it as unread. A client that was disconnected meanwhile gets the newest values.
func testMarkers(t *testing.T, m *mesh) {
	const moved, seen = "chat.read_marker_moved", "chat.messages_seen"
	alice, bob, eve := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 0), m.connect(t, someone("eve"), 1)
	tablet := m.connect(t, bob.id, 1)
	started := alice.do("chat.start_group", map[string]any{"title": "reading", "user_ids": []string{bob.id}})
	conversation := conversationOf(started)
	bob.awaitVersion(started.Stream, 1)
	for _, user := range []string{"carol", "dan"} {
		alice.do("chat.add_member", map[string]any{"conversation_id": conversation, "user_id": someone(user)}) // versions 2 and 3
	}
	mark := func(p *person, version int64) client.Outcome {
		return p.do("chat.mark_read", map[string]any{"conversation_id": conversation, "up_to": version})
	}
	if o := mark(bob, 2); o.Kind != "committed" || o.Stream != "marker:"+conversation+":"+bob.id {
		t.Fatalf("%+v", o)
	}
	tablet.awaitMarker(moved, bob.id, 2)
	alice.awaitMarker(seen, bob.id, 2)
	if o := mark(tablet, 2); o.Kind != "unchanged" {
		t.Fatalf("the tablet marks what is read already: %+v", o)
	}
	mark(tablet, 1<<60) // stands for version 3, the newest
	bob.awaitMarker(moved, bob.id, 3)
	alice.awaitMarker(seen, bob.id, 3)
	bob.do("chat.mark_unread", map[string]any{"conversation_id": conversation, "from": 3})
	tablet.await("the marker moved back", func(e client.Event) bool {
		return e.Type == moved && upTo(e) == 2 && e.Version == 3
	})
	eve.refused("not_a_member", "chat.mark_read", map[string]any{"conversation_id": conversation, "up_to": 1})
	eve.refused("not_a_member", "chat.mark_unread", map[string]any{"conversation_id": conversation, "from": 1})
	if err := eve.ask("chat.markers", map[string]any{"conversation_id": conversation}, &struct{}{}); codeOf(err) != "not_a_member" {
		t.Fatalf("eve reads the markers: %v", err)
	}
	var answer struct {
		Markers []struct {
			UserID   string `json:"user_id"`
			SeenUpTo int64  `json:"seen_up_to"`
		}
		ReadUpTo int64 `json:"read_up_to"`
	}
	if err := bob.ask("chat.markers", map[string]any{"conversation_id": conversation}, &answer); err != nil || answer.ReadUpTo != 2 ||
		len(answer.Markers) != 4 || answer.Markers[1].UserID != bob.id || answer.Markers[1].SeenUpTo != 3 {
		t.Fatalf("bob reads the markers %+v, %v", answer, err)
	}
	if err := bob.ask("chat.unread", map[string]any{}, &struct{}{}); err != nil {
		t.Fatal(err)
	}
	alice.do("chat.set_title", map[string]any{"conversation_id": conversation, "title": "last"})
	alice.awaitVersion(started.Stream, 4)
	if got := alice.versions("marker:" + conversation + ":" + bob.id); len(got) > 0 {
		t.Fatalf("alice got the events of bob's marker: %v", got)
	}
}

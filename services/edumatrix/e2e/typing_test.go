//go:build integration

package e2e

import (
	"errors"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/client"
)

// types sends the signal chat.typing. It returns the code of the refusal, or "" if the gateway accepts the signal.
// While the signal is refused as unavailable, types sends it again, until the time in the constant patience has passed.
func (p *person) types(conversation string) string {
	p.t.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := p.Signal(p.t.Context(), "chat.typing", map[string]any{"conversation_id": conversation})
		var refused *client.Error
		switch {
		case err == nil:
			return ""
		case !errors.As(err, &refused):
			p.t.Fatal(err)
		case refused.Code != "unavailable" || time.Since(begun) > patience:
			return refused.Code
		}
	}
}

func testTyping(t *testing.T, m *mesh) {
	got := map[string]chan client.Signal{}
	connect := func(name string, gateway int) *person {
		id := someone(name)
		got[name] = make(chan client.Signal, 100)
		return m.connect(t, id, gateway, func(o *client.Options) { o.OnSignal = func(g client.Signal) { got[name] <- g } })
	}
	alice, bob, carol, eve := connect("alice", 0), connect("bob", 1), connect("carol", 1), connect("eve", 1)
	started := alice.do("chat.start_group", map[string]any{"title": "typing", "user_ids": []string{bob.id, carol.id}})
	conversation := conversationOf(started)
	bob.awaitVersion(started.Stream, 1)
	carol.awaitVersion(started.Stream, 1)
	receives := func(name string) client.Signal {
		t.Helper()
		for begun := time.Now(); time.Since(begun) < patience; {
			if code := alice.types(conversation); code != "" && code != "too_many_waiting" {
				t.Fatalf("alice types: %s", code)
			}
			select {
			case g := <-got[name]:
				return g
			case <-time.After(500 * time.Millisecond):
			}
		}
		t.Fatalf("%s did not get alice's signal", name)
		return client.Signal{}
	}
	if g := receives("bob"); g.Name != "chat.typing" || g.Actor != alice.id || g.Room != started.Stream {
		t.Fatalf("bob got %+v", g)
	}
	receives("carol")
	if code := eve.types(conversation); code != "not_a_member" {
		t.Fatalf("eve types in a conversation that she is not in: %q", code)
	}
	removed := alice.do("chat.remove_member", map[string]any{"conversation_id": conversation, "user_id": carol.id})
	carol.awaitVersion(removed.Stream, removed.Version)
	for len(got["carol"]) > 0 {
		<-got["carol"]
	}
	if code := carol.types(conversation); code != "not_a_member" {
		t.Fatalf("carol types after she was removed: %q", code)
	}
	for len(got["bob"]) > 0 {
		<-got["bob"]
	}
	receives("bob")
	if n := len(got["carol"]) + len(got["eve"]); n > 0 {
		t.Fatalf("%d signals went to users who are not members", n)
	}
}

package hub_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/interval"
)

// reacted appends a counter event that a user's command has caused, and does not deliver it.
func (w *world) reacted(user string) envelope.Event {
	return w.chat.Answer(user, fmt.Sprint("c-", user), "chat.add_reaction", "chat.reactions_changed",
		`{"conversation_id":"g","message_id":"m","emoji":"👍"}`)
}

// counted takes the events that wait for a connection, and returns the versions of the counter events.
func counted(t testing.TB, c *hub.Conn) (versions []catalog.Version) {
	t.Helper()
	for _, text := range fake.Take(c, 10_000) {
		var f struct {
			Event   string
			Version catalog.Version
		}
		require.NoError(t, json.Unmarshal(text, &f))
		if f.Event == "chat.reactions_changed" {
			versions = append(versions, f.Version)
		}
	}
	return versions
}

func TestCounter_AClientGetsTheNewestEventAndTheNewestOfItsUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	alice, bob, cid := w.connect(t, "alice", nil, 0), w.connect(t, "bob", nil, 0), w.connect(t, "cid", nil, 0)
	w.deliver(w.began(`["alice","bob","cid"]`))
	w.deliver(w.reacted("bob"), w.reacted("alice"), w.reacted("alice"), w.reacted("bob"), w.reacted("alice"))
	require.Equal(t, []catalog.Version{5}, counted(t, cid))
	require.Equal(t, []catalog.Version{3, 5}, counted(t, alice))
	require.Equal(t, []catalog.Version{1, 4, 5}, counted(t, bob))
}

// Events are delivered at random, some of them as superseded, to connections that are read at random times. Each
// connection must get ascending versions, among them the newest event of its user, and at last the newest event of all.
func TestCounter_NoClientMissesTheLastValue(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	users := []string{"alice", "bob", "cid"}
	for range 200 {
		w := newWorld(t, hub.Options{})
		w.deliver(w.began(`["alice","bob","cid"]`))
		conns, got, own := map[string]*hub.Conn{}, map[string][]catalog.Version{}, map[string]catalog.Version{}
		for _, user := range users {
			conns[user] = w.connect(t, user, []string{"conversation:g"}, 1)
		}
		events := 1 + random.IntN(20)
		for n := range events {
			actor := users[random.IntN(len(users))]
			e := w.event(w.reacted(actor))
			e.Superseded = n < events-1 && random.IntN(2) == 0
			w.shard.Deliver(e)
			own[actor] = e.Version
			if user := users[random.IntN(len(users))]; random.IntN(3) == 0 {
				got[user] = append(got[user], counted(t, conns[user])...)
			}
		}
		for _, user := range users {
			got[user] = append(got[user], counted(t, conns[user])...)
			require.True(t, slices.IsSorted(got[user]), "%s: %v", user, got[user])
			require.EqualValues(t, events, got[user][len(got[user])-1])
			if own[user] > 0 {
				require.Contains(t, got[user], own[user], user)
			}
		}
	}
}

func TestCounter_ASupersededEventGoesToItsUserOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	alice, bob, outside := w.connect(t, "alice", nil, 0), w.connect(t, "bob", nil, 0), w.connect(t, "eve", nil, 0)
	w.deliver(w.began(`["alice","bob"]`))
	for _, user := range []string{"bob", "eve"} { // eve is not in the room
		e := w.event(w.reacted(user))
		e.Superseded = true
		w.shard.Deliver(e)
	}
	require.Empty(t, counted(t, alice))
	require.Equal(t, []catalog.Version{1}, counted(t, bob))
	require.Empty(t, counted(t, outside))
	w.deliver(w.reacted("alice"))
	require.Equal(t, []catalog.Version{3}, counted(t, bob))
}

func TestCounter_AResumingClientGetsTheNewestEventAndTheNewestOfItsUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	p := w.missedEvents(w.began(`["alice","bob","cid"]`), w.reacted("bob"), w.reacted("alice"), w.reacted("bob"),
		w.sent("5"), w.reacted("alice"), w.reacted("alice")) // at the positions 1 to 7
	for user, want := range map[string][]catalog.Position{"alice": {5, 7}, "bob": {4, 5, 7}, "cid": {5, 7}} {
		got, notRecovered := p.Of(user, frame.JSON, hub.Absence{After: 1, Until: 7,
			Intervals: []interval.Interval{{Room: "conversation:g", From: 1}}}, wide)
		require.Equal(t, want, at(got), user)
		require.Empty(t, notRecovered)
	}
}

package hub_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
)

func TestResumeToken_IsAcceptedOnlyUnchangedAndForItsUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{TokenKey: []byte("a key")})
	p := hub.Progress{"chat": {Position: 1 << 60, Incarnation: hub.IncarnationOf("a")}, "feed": {}, "notification": {Position: 77}}
	token := w.hub.ResumeToken("bob", p)
	require.Less(t, len(token), 120)
	got, known := w.hub.ReadResumeToken("bob", token)
	require.True(t, known)
	require.Equal(t, p, got)
	for i := range token {
		other := byte('A')
		if token[i] == other {
			other = 'B'
		}
		_, known := w.hub.ReadResumeToken("bob", token[:i]+string(other)+token[i+1:])
		require.False(t, known, i)
		_, known = w.hub.ReadResumeToken("bob", token[:i])
		require.False(t, known, i)
	}
	_, known = w.hub.ReadResumeToken("eve", token)
	require.False(t, known, "the token is bound to its user")
	_, known = newWorld(t, hub.Options{TokenKey: []byte("another key")}).hub.ReadResumeToken("bob", token)
	require.False(t, known, "the token is bound to its installation")
	for _, mangled := range []string{"", "A", token + "A", token + token, " " + token, strings.Repeat("A", 5000),
		"AQRjaGF0BfKmrcc"} {
		_, known := w.hub.ReadResumeToken("bob", mangled)
		require.False(t, known, mangled)
	}
}

func FuzzReadResumeToken(f *testing.F) {
	w := newWorld(f, hub.Options{})
	f.Add(w.hub.ResumeToken("bob", hub.Progress{"chat": {Position: 5}}))
	f.Add("AQRjaGF0BfKmrcc")
	f.Fuzz(func(t *testing.T, text string) {
		if p, known := w.hub.ReadResumeToken("bob", text); known {
			again, known := w.hub.ReadResumeToken("bob", w.hub.ResumeToken("bob", p))
			require.True(t, known)
			require.Equal(t, p, again)
		}
	})
}

// tokens takes the frames that wait for bob's connection, and returns chat's position in each of their resume tokens.
func tokens(t *testing.T, w *world, c *hub.Conn) (positions []catalog.Position) {
	t.Helper()
	for _, text := range fake.Take(c, 10_000) {
		var f struct {
			Token string `json:"resume_token"`
			Data  struct {
				Token string `json:"resume_token"`
			}
		}
		require.NoError(t, json.Unmarshal(text, &f))
		if token := f.Token + f.Data.Token; token != "" {
			p, known := w.hub.ReadResumeToken("bob", token)
			require.True(t, known)
			positions = append(positions, p["chat"].Position)
		}
	}
	return positions
}

func (w *world) complete(position catalog.Position) {
	for _, owner := range w.chat.Catalog.Logs() {
		w.hub.Shard(owner).SetComplete(position)
	}
}

func TestHeartbeat_ItsTokenCoversTheEventsQueuedBeforeIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	c.Greet(greeting)
	w.hub.Beat(false)
	require.Empty(t, fake.Take(c, 10))
	w.hub.Beat(true)
	require.Equal(t, `{"type":"heartbeat"}`, string(fake.Take(c, 10)[0]), "a heartbeat without a resume token")
	for _, owner := range w.chat.Catalog.Logs() {
		require.True(t, w.hub.Shard(owner).Attach(c, hub.Attachment{Position: 5}))
	}
	require.Equal(t, []catalog.Position{5}, tokens(t, w, c), "asOf, in the greeting")

	w.hub.Beat(false)
	require.Empty(t, tokens(t, w, c), "no newer token is available")
	w.complete(7)
	w.hub.Beat(false)
	require.Empty(t, tokens(t, w, c), "no event was queued")
	w.hub.Beat(true)
	require.Equal(t, []catalog.Position{7}, tokens(t, w, c), "resuming from an old token is expensive")
	w.hub.Beat(true)
	require.Equal(t, []catalog.Position{7}, tokens(t, w, c), "a heartbeat that is due is always sent")

	e := w.began(`["bob"]`)
	e.Position = 9
	w.deliver(e)
	w.hub.Beat(false)
	require.Empty(t, tokens(t, w, c), "the event at 9 was queued, but events below 9 may be missing")
	w.complete(8)
	w.hub.Beat(false)
	w.complete(12)
	w.hub.Beat(false)
	w.hub.Beat(false)
	require.Equal(t, []catalog.Position{8, 12}, tokens(t, w, c), "until a token covers the queued event")

	w.complete(15)
	w.hub.Close(hub.Shutdown)
	require.Equal(t, []catalog.Position{15}, tokens(t, w, c), "before the connection ends")
}

// A client that resumes has not got any missed events yet. The heartbeats to this client must contain the resume token
// with which the client resumes.
func TestHeartbeat_OfAResumingConnectionHasItsOwnToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	c.SetProgress(hub.Progress{"chat": {Position: 3}})
	w.hub.Beat(true)
	require.Equal(t, []catalog.Position{3}, tokens(t, w, c))
}

func TestHeartbeat_IsDroppedRatherThanAConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 3, Stall: time.Nanosecond}})
	c := w.connect(t, "bob", nil, 0)
	for _, owner := range w.chat.Catalog.Logs() {
		require.True(t, w.hub.Shard(owner).Attach(c, hub.Attachment{}))
	}
	fake.Take(c, 10)
	w.deliver(w.began(`["bob"]`))
	for n := range 10 {
		w.complete(catalog.Position(n + 1))
		w.hub.Beat(true)
	}
	w.deliver(w.sent("1"), w.sent("2"))
	_, ended := c.Reason()
	require.False(t, ended)
	require.Equal(t, []string{"conversation_started", "1", "2"}, seen(t, c))
}

// The user whose command caused an event must get the command id with the event. Other users must not get it.
func TestEvent_ShowsTheCommandToItsUserAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	alice, bob := w.connect(t, "alice", nil, 0), w.connect(t, "bob", nil, 0)
	e := w.began(`["alice","bob"]`)
	e.Cause = "c-1"
	w.deliver(e)
	require.Contains(t, string(fake.Take(alice, 1)[0]), `"command_id":"c-1"`)
	require.NotContains(t, string(fake.Take(bob, 1)[0]), "command_id")
}

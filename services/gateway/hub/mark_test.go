package hub_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
)

func TestMark_ComesBackAsItWentAndNotMangled(t *testing.T) {
	t.Parallel()
	m := hub.Mark{"chat": 1 << 60, "feed": 0, "notification": 77}
	text := m.String()
	require.Less(t, len(text), 100)
	got, err := hub.ParseMark(text)
	require.NoError(t, err)
	require.Equal(t, m, got)
	for i := range text {
		other := byte('A')
		if text[i] == other {
			other = 'B'
		}
		_, err := hub.ParseMark(text[:i] + string(other) + text[i+1:])
		require.Error(t, err, i)
		_, err = hub.ParseMark(text[:i])
		require.Error(t, err, i)
	}
	for _, mangled := range []string{"", "A", text + "A", text + text, " " + text, strings.Repeat("A", 5000)} {
		_, err := hub.ParseMark(mangled)
		require.Error(t, err, mangled)
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add(hub.Mark{"chat": 5}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := hub.ParseMark(text); err == nil {
			again, err := hub.ParseMark(m.String())
			require.NoError(t, err)
			require.Equal(t, m, again)
		}
	})
}

// marks takes what waits for a connection and gives the marks in it, as the chat's positions.
func marks(t *testing.T, c *hub.Conn) (positions []int64) {
	t.Helper()
	for _, frame := range c.Take(10_000) {
		var f struct{ At string }
		require.NoError(t, json.Unmarshal(frame, &f))
		if f.At != "" {
			m, err := hub.ParseMark(f.At)
			require.NoError(t, err)
			positions = append(positions, m["chat"])
		}
	}
	return positions
}

func TestMark_SaysWhatIsInTheQueueBeforeIt(t *testing.T) {
	t.Parallel()
	complete := int64(0)
	w := newWorld(t, hub.Options{Complete: func(string) int64 { return complete }})
	c, err := w.hub.Add("bob")
	require.NoError(t, err)
	w.hub.Mark(true)
	require.Empty(t, marks(t, c), "its rooms are not known")
	for _, owner := range w.chat.Catalog.Logs() {
		require.True(t, w.hub.View(owner).Attach(c, nil, 5))
	}
	require.Equal(t, []int64{5}, marks(t, c), "the floor, with ready")

	w.hub.Mark(true)
	require.Empty(t, marks(t, c), "nothing is newer")
	complete = 7
	w.hub.Mark(false)
	require.Empty(t, marks(t, c), "nothing was given")
	w.hub.Mark(true)
	require.Equal(t, []int64{7}, marks(t, c), "an old mark is dear to come back with")

	e := w.began(`["bob"]`)
	e.Position = 9
	w.deliver(e)
	w.hub.Mark(false)
	require.Empty(t, marks(t, c), "given at 9, which is not known to be all up to there")
	complete = 8
	w.hub.Mark(false)
	complete = 12
	w.hub.Mark(false)
	w.hub.Mark(false)
	require.Equal(t, []int64{8, 12}, marks(t, c), "until one covers what was given")

	complete = 15
	w.hub.Close(hub.Shutdown)
	require.Equal(t, []int64{15}, marks(t, c), "before the end")
}

func TestMark_IsDroppedRatherThanAConnection(t *testing.T) {
	t.Parallel()
	complete := int64(0)
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 3},
		Complete: func(string) int64 { complete++; return complete }})
	c := w.connect(t, "bob", nil, 0)
	for _, owner := range w.chat.Catalog.Logs() {
		require.True(t, w.hub.View(owner).Attach(c, nil, 0))
	}
	c.Take(10)
	w.deliver(w.began(`["bob"]`))
	for range 10 {
		w.hub.Mark(true)
	}
	w.deliver(w.said("1"), w.said("2"))
	_, ended := c.Reason()
	require.False(t, ended)
	require.Equal(t, []string{"conversation_started", "1", "2"}, seen(t, c))
}

package hub_test

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
)

func TestMark_ComesBackAsItWentAndNotMangled(t *testing.T) {
	t.Parallel()
	m := hub.Mark{"chat": {Position: 1 << 60, Incarnation: hub.IncarnationOf("a")}, "feed": {},
		"notification": {Position: 77, Partial: true}}
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
	old, err := hub.ParseMark("AQRjaGF0BfKmrcc")
	require.NoError(t, err, "a mark of the first version")
	require.Equal(t, hub.Mark{"chat": {Position: 5}}, old)
	for _, mangled := range []string{"", "A", text + "A", text + text, " " + text, strings.Repeat("A", 5000)} {
		_, err := hub.ParseMark(mangled)
		require.Error(t, err, mangled)
	}
}

// A mark may be edited by whoever computes its checksum as well. It grants nothing, but has to be one.
func TestMark_ThatWasMadeByOthers(t *testing.T) {
	t.Parallel()
	sealed := func(b ...byte) string {
		return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
	}
	const incarnation = "\x00\x00\x00\x07"
	owned := func(position string, partial byte) []byte {
		return append([]byte("\x02\x04chat"+position+incarnation), partial)
	}
	m, err := hub.ParseMark(sealed(owned("\x05", 1)...))
	require.NoError(t, err)
	require.Equal(t, hub.Mark{"chat": {Position: 5, Incarnation: 7, Partial: true}}, m)
	for name, b := range map[string][]byte{
		"of a release to come":       append([]byte{3}, owned("\x05", 0)[1:]...),
		"of version 0":               append([]byte{0}, owned("\x05", 0)[1:]...),
		"cut in the owner":           []byte("\x02\x04cha"),
		"cut in the position":        []byte("\x02\x04chat\x80"),
		"cut in the incarnation":     []byte("\x02\x04chat\x05\x00\x00"),
		"without partial":            []byte("\x02\x04chat\x05" + incarnation),
		"of an odd partial":          owned("\x05", 2),
		"with an owner that is long": []byte("\x02\xffchat\x05" + incarnation + "\x00"),
		"beyond int64":               owned("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0),
		"beyond uint64":              owned("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 0),
	} {
		_, err := hub.ParseMark(sealed(b...))
		require.Error(t, err, name)
	}
	for _, text := range []string{strings.Repeat("A", 1<<20), "AQRjaGF0BfKmrcc=", "AQRjaGF0BfKmrcd",
		"\x00", "\ufeffAQRjaGF0BfKmrcc"} {
		_, err := hub.ParseMark(text)
		require.Error(t, err)
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add(hub.Mark{"chat": {Position: 5}}.String())
	f.Add("AQRjaGF0BfKmrcc")
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
			positions = append(positions, m["chat"].Position)
		}
	}
	return positions
}

func (w *world) complete(position int64) {
	for _, owner := range w.chat.Catalog.Logs() {
		w.hub.View(owner).SetComplete(position)
	}
}

func TestMark_SaysWhatIsInTheQueueBeforeIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
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
	w.complete(7)
	w.hub.Mark(false)
	require.Empty(t, marks(t, c), "nothing was given")
	w.hub.Mark(true)
	require.Equal(t, []int64{7}, marks(t, c), "an old mark is dear to come back with")

	e := w.began(`["bob"]`)
	e.Position = 9
	w.deliver(e)
	w.hub.Mark(false)
	require.Empty(t, marks(t, c), "given at 9, which is not known to be all up to there")
	w.complete(8)
	w.hub.Mark(false)
	w.complete(12)
	w.hub.Mark(false)
	w.hub.Mark(false)
	require.Equal(t, []int64{8, 12}, marks(t, c), "until one covers what was given")

	w.complete(15)
	w.hub.Close(hub.Shutdown)
	require.Equal(t, []int64{15}, marks(t, c), "before the end")
}

func TestMark_IsDroppedRatherThanAConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 3, Stall: time.Nanosecond}})
	c := w.connect(t, "bob", nil, 0)
	for _, owner := range w.chat.Catalog.Logs() {
		require.True(t, w.hub.View(owner).Attach(c, nil, 0))
	}
	c.Take(10)
	w.deliver(w.began(`["bob"]`))
	for n := range 10 {
		w.complete(int64(n + 1))
		w.hub.Mark(true)
	}
	w.deliver(w.said("1"), w.said("2"))
	_, ended := c.Reason()
	require.False(t, ended)
	require.Equal(t, []string{"conversation_started", "1", "2"}, seen(t, c))
}

package hub_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/interval"
)

var wide = hub.Bounds{Events: 1000, Bytes: 1 << 20}

// missedEvents merges the events from two sources. Some events are in one source only, others in both.
func (w *world) missedEvents(events ...envelope.Event) *hub.MissedEvents {
	var one, two []*hub.Event
	for i, e := range events {
		if i%3 != 0 {
			one = append(one, w.event(e))
		}
		if i%3 != 1 {
			two = append(two, w.event(e))
		}
	}
	slices.Reverse(one) // partitions are read concurrently, so positions do not ascend
	return hub.NewMissedEvents(one, two)
}

func at(events []*hub.Event) (positions []catalog.Position) {
	for _, e := range events {
		positions = append(positions, e.Position)
	}
	return positions
}

func TestMissed_ContainsTheEventsOfTheIntervalsOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	p := w.missedEvents(w.began(`["alice"]`), w.sent("2"), w.member("chat.member_added", "bob"), w.sent("4"),
		w.member("chat.member_left", "bob"), w.sent("6"), w.member("chat.member_added", "bob"), w.sent("8"), w.sent("9"))
	const room = "conversation:g"
	first, second := interval.Interval{Room: room, From: 3, Until: 5}, interval.Interval{Room: room, From: 7}
	for name, c := range map[string]struct {
		after, until catalog.Position
		intervals    []interval.Interval
		want         []catalog.Position
	}{
		"from before both intervals":       {0, 9, []interval.Interval{first, second}, []catalog.Position{3, 4, 5, 7, 8, 9}},
		"from within the first interval":   {3, 9, []interval.Interval{first, second}, []catalog.Position{4, 5, 7, 8, 9}},
		"from between the intervals":       {5, 9, []interval.Interval{second}, []catalog.Position{7, 8, 9}},
		"from within the second interval":  {8, 9, []interval.Interval{second}, []catalog.Position{9}},
		"up to a position":                 {0, 8, []interval.Interval{first, second}, []catalog.Position{3, 4, 5, 7, 8}},
		"the first interval, closed later": {0, 4, []interval.Interval{{Room: room, From: 3}}, []catalog.Position{3, 4}},
		"nothing was missed":               {9, 9, []interval.Interval{second}, nil},
		"never a member":                   {0, 9, nil, nil},
		"a member of another room":         {0, 9, []interval.Interval{{Room: "conversation:h", From: 1}}, nil},
	} {
		got, notRecovered := p.Of("bob", frame.JSON, hub.Absence{After: c.after, Until: c.until, Intervals: c.intervals}, wide)
		require.Equal(t, c.want, at(got), name)
		require.Empty(t, notRecovered, name)
	}
}

func TestMissed_IsRedactedWhereverTheDeletionWasRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	kept := []envelope.Event{w.began(`["bob"]`), w.sent("secret")}
	deleted := w.chat.Append("alice", "chat.message_deleted", `{"conversation_id":"g","message_id":"m-secret"}`)
	p := hub.NewMissedEvents([]*hub.Event{w.event(kept[0]), w.event(kept[1])}, []*hub.Event{w.event(deleted)})
	// The missed events end at a position before the deletion, but the gateway has already read the deletion.
	got, _ := p.Of("bob", frame.JSON, hub.Absence{Until: 2, Intervals: []interval.Interval{{Room: "conversation:g", From: 1}}}, wide)
	require.Equal(t, []catalog.Position{1, 2}, at(got))
	require.True(t, got[1].Redacted)
	text, err := got[1].Frame(0)
	require.NoError(t, err)
	require.NotContains(t, string(text), `"secret"`)
}

func TestMissed_OnlyTheRoomOverTheBoundIsNotRecovered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	events := []envelope.Event{w.began(`["bob"]`)}
	for n := range 9 {
		events = append(events, w.sent(fmt.Sprint(n)))
	}
	events = append(events, w.chat.Append("alice", "chat.conversation_started",
		`{"conversation_id":"h","user_ids":["bob"]}`))
	p := w.missedEvents(events...)
	intervals := []interval.Interval{{Room: "conversation:g", From: 1}, {Room: "conversation:h", From: 11}}

	got, notRecovered := p.Of("bob", frame.JSON, hub.Absence{After: 0, Until: 11, Intervals: intervals}, hub.Bounds{Events: 9, Bytes: 1 << 20})
	require.Equal(t, []catalog.Position{11}, at(got))
	require.Equal(t, []string{"conversation:g"}, notRecovered)
	got, notRecovered = p.Of("bob", frame.JSON, hub.Absence{After: 1, Until: 11, Intervals: intervals}, hub.Bounds{Events: 9, Bytes: 1 << 20})
	require.Len(t, got, 10)
	require.Empty(t, notRecovered)
	got, notRecovered = p.Of("bob", frame.JSON, hub.Absence{After: 0, Until: 11, Intervals: intervals}, hub.Bounds{Events: 100, Bytes: 1000})
	require.Equal(t, []catalog.Position{11}, at(got), "the largest room is not recovered if all rooms exceed the bound")
	require.Equal(t, []string{"conversation:g"}, notRecovered)
	got, notRecovered = p.Of("bob", frame.JSON, hub.Absence{Until: 11, Intervals: intervals, NotRecovered: []string{"conversation:h"}}, wide)
	require.Len(t, got, 10)
	require.Equal(t, []string{"conversation:h"}, notRecovered, "the owner has found more events")
}

// Members of a group read its messages, and each time a counter changes. A client needs only the newest value of each
// counter. The superseded values must not make the room count as not recovered.
func TestMissed_CountsOnlyTheNewestValueOfACounter(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	events := []envelope.Event{w.began(`["bob"]`)}
	for n := range 9 {
		for _, user := range []string{"alice", "carol"} {
			events = append(events, w.chat.Append(user, "chat.messages_seen",
				fmt.Sprintf(`{"conversation_id":"g","user_id":%q,"up_to":%d}`, user, n+1)))
		}
	}
	p := w.missedEvents(append(events, w.sent("last"))...)
	got, notRecovered := p.Of("bob", frame.JSON, hub.Absence{After: 1, Until: 20,
		Intervals: []interval.Interval{{Room: "conversation:g", From: 1}}}, hub.Bounds{Events: 3, Bytes: 1 << 20})
	require.Equal(t, []catalog.Position{18, 19, 20}, at(got))
	require.Empty(t, notRecovered)
}

// A client disconnects and resumes many times. It must get the same events as a client that stays connected.
func TestResume_AnyNumberOfAbsencesMakesNoDifference(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t, hub.Options{})
		var log []envelope.Event
		log = append(log, w.began(`["alice"]`))
		inside := false
		var intervals []interval.Interval
		for len(log) < 60 {
			if r.IntN(5) > 0 {
				log = append(log, w.sent(fmt.Sprint(len(log))))
				continue
			}
			if inside = !inside; inside {
				log = append(log, w.member("chat.member_added", "bob"))
				intervals = append(intervals, interval.Interval{Room: "conversation:g", From: catalog.Position(len(log))})
			} else {
				log = append(log, w.member("chat.member_left", "bob"))
				intervals[len(intervals)-1].Until = catalog.Position(len(log))
			}
		}
		steady := w.connect(t, "bob", nil, 0)
		var want, got []string
		c, after := w.connect(t, "bob", nil, 0), catalog.Position(0)
		for read := 0; read < len(log); {
			n := min(1+r.IntN(12), len(log)-read)
			w.deliver(log[read : read+n]...)
			read += n
			want = append(want, seen(t, steady)...)
			got = append(got, seen(t, c)...)
			after = max(after, catalog.Position(read)) // like the position in the client's resume token
			if r.IntN(2) == 0 {
				continue
			}
			// Some events are delivered while the client is disconnected. Then the client resumes, and the owner
			// answers as of a position that may be above the events that the gateway has read.
			w.hub.Remove(c)
			n = min(r.IntN(12), len(log)-read)
			w.deliver(log[read : read+n]...)
			read += n
			want = append(want, seen(t, steady)...)
			position := max(after, min(catalog.Position(read+r.IntN(6)), catalog.Position(len(log))))
			recent, whole := w.shard.Buffered(after)
			require.True(t, whole)
			var delivered []*hub.Event
			for _, e := range log[read:position] {
				delivered = append(delivered, w.event(e))
			}
			back := hub.Attachment{Position: position}
			known := asOf(intervals, after, position)
			for _, s := range known {
				if s.Until == 0 {
					back.Rooms = append(back.Rooms, s.Room)
				}
			}
			back.Missed, back.NotRecovered = hub.NewMissedEvents(recent, delivered).Of("bob", frame.JSON, hub.Absence{After: after, Until: position, Intervals: known}, wide)
			require.Empty(t, back.NotRecovered)
			var err error
			c, err = w.hub.Add("bob", frame.JSON)
			require.NoError(t, err)
			require.True(t, w.shard.Attach(c, back))
			after = position
		}
		want, got = append(want, seen(t, steady)...), append(got, seen(t, c)...)
		require.Equal(t, want, got, "seed %d", seed)
	}
}

// asOf returns the membership intervals in the answer of an owner as of the given position. The parameter after is the
// client's position: the client has the events up to it. The answer lacks the intervals that end at or below the
// client's position, and the intervals that begin above the given position. An interval that ends above the given
// position is still open in the answer.
func asOf(intervals []interval.Interval, after, position catalog.Position) (known []interval.Interval) {
	for _, s := range intervals {
		if s.Until > position {
			s.Until = 0
		}
		if s.From <= position && (s.Until == 0 || s.Until > after) {
			known = append(known, s)
		}
	}
	return known
}

func TestResume_MissedEventsDoNotMakeAConnectionSlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 10, Stall: time.Nanosecond}})
	log := []envelope.Event{w.began(`["bob"]`)}
	for n := range 100 {
		log = append(log, w.sent(fmt.Sprint(n)))
	}
	missed, _ := w.missedEvents(log...).Of("bob", frame.JSON, hub.Absence{Until: 101, Intervals: []interval.Interval{{Room: "conversation:g", From: 1}}}, wide)
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 101, Missed: missed}))
	for range 10 {
		w.deliver(w.sent("live"))
	}
	_, ended := c.Reason()
	require.False(t, ended)
	fake.Take(c, 101)
	require.Equal(t, slices.Repeat([]string{"live"}, 10), seen(t, c))
	for range 11 {
		w.deliver(w.sent("more"))
	}
	_, ended = c.Reason()
	require.True(t, ended, "the limits apply to later events")
}

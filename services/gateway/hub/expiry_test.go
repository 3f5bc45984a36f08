package hub_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/interval"
)

// An event expires while it waits. It must be delivered in its place in the order, but without its personal fields. An
// event that has not expired must be delivered unchanged. Each subtest is a place where the event waits.
func TestExpiry_RedactsExpiredEventsInQueueAndBuffer(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]func(t *testing.T, w *world, pass func(), story envelope.Event) *hub.Conn{
		"on its topic": func(t *testing.T, w *world, pass func(), story envelope.Event) *hub.Conn {
			bob := w.connect(t, "bob", []string{"conversation:g"}, 1)
			pass()
			w.deliver(story)
			return bob
		},
		"in a connection's queue": func(t *testing.T, w *world, pass func(), story envelope.Event) *hub.Conn {
			bob := w.connect(t, "bob", []string{"conversation:g"}, 1)
			w.deliver(story)
			pass()
			return bob
		},
		"in the event buffer": func(t *testing.T, w *world, pass func(), story envelope.Event) *hub.Conn {
			w.deliver(story)
			early := w.connect(t, "bob", []string{"conversation:g"}, 1)
			require.Contains(t, join(fake.Take(early, 10)), "a secret")
			pass()
			return w.connect(t, "bob", []string{"conversation:g"}, 1)
		},
		"among the missed events": func(t *testing.T, w *world, pass func(), story envelope.Event) *hub.Conn {
			missed, notRecovered := hub.NewMissedEvents([]*hub.Event{w.event(story)}).Of("bob", frame.JSON,
				hub.Absence{After: 1, Until: 2, Intervals: []interval.Interval{{Room: "conversation:g", From: 1}}},
				hub.Bounds{Events: 10, Bytes: 1 << 20})
			require.Empty(t, notRecovered)
			bob, err := w.hub.Add("bob", frame.JSON)
			require.NoError(t, err)
			require.True(t, w.shard.Attach(bob, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 2, Missed: missed}))
			pass()
			return bob
		},
		"in the snapshot of a room": func(t *testing.T, w *world, pass func(), story envelope.Event) *hub.Conn {
			bob := w.connect(t, "bob", nil, 1)
			asked, _ := w.shard.Now(bob)
			require.True(t, w.shard.Subscribe(bob, hub.Authorization{Room: "conversation:g", Asked: asked, Position: 2,
				Snapshot: []*hub.Event{w.event(story)}, Until: time.Now().Add(time.Hour)}))
			pass()
			return bob
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, expired := range []bool{false, true} {
				now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
				w := newWorld(t, hub.Options{Now: func() time.Time { return now }})
				w.deliver(w.began(`["bob"]`))
				story := w.sent("a secret")
				story.Expires = now.Add(time.Minute)
				pass := func() {
					if now = story.Expires.Add(-time.Nanosecond); expired {
						now = story.Expires
					}
				}
				shown := join(fake.Take(wait(t, w, pass, story), 10))
				require.Equal(t, !expired, strings.Contains(shown, `"body":"a secret"`), shown)
				require.Equal(t, expired, strings.Contains(shown, `"redacted":true`), shown)
				require.Contains(t, shown, `"version":2`, "versions have no gap")
				require.Contains(t, shown, `"conversation_id":"g"`)
			}
		})
	}
}

// A gateway of an earlier release does not have the event's type in its catalog, so it cannot determine which fields
// are personal. Once the event has expired, a Protobuf client must get no field of it.
func TestExpiry_AnEventOfAnUndeclaredTypeLosesItsData(t *testing.T) {
	t.Parallel()
	for _, expired := range []bool{false, true} {
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		w := newWorld(t, hub.Options{Now: func() time.Time { return now }})
		w.deliver(w.began(`["bob"]`))
		bob, err := w.hub.Add("bob", frame.Protobuf)
		require.NoError(t, err)
		require.True(t, w.shard.Attach(bob, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 1}))
		story := w.sent("a secret")
		story.Type, story.Expires = "chat.of_a_later_release", now.Add(time.Minute)
		w.deliver(story)
		if expired {
			now = story.Expires
		}
		shown := join(fake.Take(bob, 10))
		require.Contains(t, shown, "chat.of_a_later_release")
		require.Equal(t, !expired, strings.Contains(shown, "a secret"))
	}
}

// The body of an event cannot be decoded. JSON clients cannot get it. Protobuf clients must get the body as it is,
// whichever connection comes first.
func TestDeliver_ABodyThatCannotBeDecodedReachesProtobufClients(t *testing.T) {
	t.Parallel()
	for _, order := range [][]frame.Encoding{{frame.JSON, frame.Protobuf}, {frame.Protobuf, frame.JSON}} {
		w := newWorld(t, hub.Options{})
		w.deliver(w.began(`["bob"]`))
		conns := map[frame.Encoding]*hub.Conn{}
		for _, e := range order {
			c, err := w.hub.Add("bob", e)
			require.NoError(t, err)
			require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 1}))
			conns[e] = c
		}
		broken := w.sent("x")
		broken.Body = []byte("\xff\xff not a message")
		w.deliver(broken)
		require.Empty(t, fake.Take(conns[frame.JSON], 10))
		require.Contains(t, join(fake.Take(conns[frame.Protobuf], 10)), "not a message")
	}
}

func join(frames [][]byte) string {
	var all []string
	for _, f := range frames {
		all = append(all, string(f))
	}
	return strings.Join(all, "\n")
}

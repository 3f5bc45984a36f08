package hub_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
)

// A connection enters and leaves 100,000 rooms while another user gets events. No delivery may wait until the
// connection has entered or left all of its rooms.
func TestResume_VeryManyRoomsDoNotHoldUpDelivery(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 rooms")
	}
	w := newWorld(t, hub.Options{})
	w.deliver(w.began(`["bob"]`))
	bob := w.connect(t, "bob", []string{"conversation:g"}, 1)
	rooms := make([]string, 100_000)
	for n := range rooms {
		rooms[n] = fmt.Sprint("conversation:", n)
	}
	const rounds = 3
	delivered := 0 // the number of events that were delivered while eve's connection was being attached and removed
	for range rounds {
		eve, err := w.hub.Add("eve", frame.JSON)
		require.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.shard.Attach(eve, hub.Attachment{Rooms: rooms, Position: 1})
			w.hub.Remove(eve)
		}()
		for busy := true; busy; {
			select {
			case <-done:
				busy = false
			default:
				w.deliver(w.sent("live"))
				require.Equal(t, []string{"live"}, seen(t, bob))
				delivered++
				runtime.Gosched() // on one processor, this loop would otherwise hold up the attaching goroutine
			}
		}
	}
	require.Greater(t, delivered, 50*rounds, "if the lock were held for all rooms, it would be four or five per round")
}

func TestResume_EventsBetweenTwoSlicesAreDeliveredOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	w.deliver(w.began(`["alice","bob"]`))
	rooms := []string{"conversation:g"}
	for n := range 5000 {
		rooms = append(rooms, fmt.Sprint("conversation:", n))
	}
	for range 20 {
		bob, err := w.hub.Add("bob", frame.JSON)
		require.NoError(t, err)
		position := catalog.Position(len(w.chat.Log()))
		attached := make(chan bool)
		go func() { attached <- w.shard.Attach(bob, hub.Attachment{Rooms: rooms, Position: position}) }()
		var want []string
		for n := range 50 {
			want = append(want, fmt.Sprint(n))
			w.deliver(w.sent(fmt.Sprint(n)))
		}
		require.True(t, <-attached)
		require.Equal(t, want, seen(t, bob))
		w.hub.Remove(bob)
	}
}

// sized returns missed events, each with a body of the given number of bytes.
func (w *world) sized(n, bytes int) []*hub.Event {
	var events []*hub.Event
	for i := range n {
		e := w.chat.Append("alice", "chat.message_sent",
			fmt.Sprintf(`{"conversation_id":"g","message_id":"m%d","body":%q}`, i, strings.Repeat("x", bytes)))
		events = append(events, w.event(e))
	}
	return events
}

func typing(actor string) *frame.Shared {
	return &frame.Shared{Frame: frame.Signal("chat.typing", "conversation:g", actor, nil)}
}

// comeBack adds a connection of bob that resumes with the given progress.
func (w *world) comeBack(t *testing.T, had hub.Progress) *hub.Conn {
	t.Helper()
	c, err := w.hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	c.Greet(greeting)
	c.SetProgress(had)
	return c
}

func TestResume_BeyondTheGatewaysBoundIsNotRecovered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Missed: 100_000})
	missed := w.sized(40, 1000)
	back := hub.Attachment{Rooms: []string{"conversation:g"}, Position: 40, Missed: missed}
	first, second := w.comeBack(t, hub.Progress{"chat": {}}), w.comeBack(t, hub.Progress{"chat": {}})
	third := w.comeBack(t, hub.Progress{"chat": {}})
	for _, c := range []*hub.Conn{first, second, third} {
		require.True(t, w.shard.Attach(c, back))
		for _, owner := range w.chat.Catalog.Logs() {
			require.True(t, w.hub.Shard(owner).Attach(c, hub.Attachment{}))
		}
	}
	require.Len(t, fake.Take(first, 100), 41)
	require.Len(t, fake.Take(second, 1), 1)
	frames := fake.Take(third, 100)
	require.Len(t, frames, 2, "the rooms that are not recovered, and the greeting")
	require.Contains(t, string(frames[0]), `{"type":"not_recovered","room":"user:bob"}`)
	require.Contains(t, string(frames[0]), `{"type":"not_recovered","room":"conversation:g"}`)
	require.Contains(t, string(frames[1]), `"not_recovered":["conversation:g","user:bob"]`)

	w.hub.Remove(second) // the missed events that wait for this connection no longer count
	fourth := w.comeBack(t, hub.Progress{"chat": {}})
	require.True(t, w.shard.Attach(fourth, back))
	require.Len(t, fake.Take(fourth, 100), 40)
}

// A client on a slow link loses its connection again and again before it has all events. Each time the client must
// continue from its last resume token.
func TestResume_ACutOffClientContinuesFromTheLastToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	events := w.sized(900, 4000)
	had := hub.Progress{"chat": {}, "feed": {Position: 3}, "notification": {Position: 4}}
	var got []catalog.Position
	for tries := 0; had["chat"].Position < 900; tries++ {
		require.Less(t, tries, 50, "no progress from %v", had)
		after := had["chat"].Position
		c := w.comeBack(t, had)
		require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g"}, Position: 900, Missed: events[after:]}))
		left := 300 << 10 // bytes that get through before the link is cut
		var uncovered []catalog.Position
		for left > 0 {
			frames, _, _ := c.Next(nil, 16<<10)
			if len(frames) == 0 {
				got, uncovered = append(got, uncovered...), nil // the client has everything; a heartbeat would follow
				had["chat"] = hub.Point{Position: 900}
				break
			}
			for _, text := range frames {
				if left -= len(text); left <= 0 {
					break
				}
				var f struct {
					Token string `json:"resume_token"`
					Data  struct {
						ID string `json:"message_id"`
					}
				}
				require.NoError(t, json.Unmarshal(text, &f))
				if f.Token == "" {
					var n catalog.Position
					_, err := fmt.Sscanf(f.Data.ID, "m%d", &n)
					require.NoError(t, err)
					uncovered = append(uncovered, n)
					continue
				}
				var known bool
				had, known = w.hub.ReadResumeToken("bob", f.Token)
				require.True(t, known)
				require.Equal(t, f.Token, c.Written())
				require.EqualValues(t, 3, had["feed"].Position, "the progress in other logs does not change")
				require.Equal(t, uncovered[len(uncovered)-1]+1, had["chat"].Position)
				got, uncovered = append(got, uncovered...), nil
			}
		}
		w.hub.Remove(c)
	}
	want := make([]catalog.Position, 900)
	for n := range want {
		want[n] = catalog.Position(n)
	}
	require.Equal(t, want, got)
}

// A client resumes, and the events of one room are left out because there are too many. The client must get the name of
// this room, as not recovered, before it gets a resume token above the events that were left out. Otherwise, a client
// whose connection breaks in between would never learn of the room.
func TestResume_NotRecoveredPrecedesTokensThatPassIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	c := w.comeBack(t, hub.Progress{"chat": {}})
	require.True(t, w.shard.Attach(c, hub.Attachment{Rooms: []string{"conversation:g", "conversation:h"}, Position: 100,
		Missed: w.sized(100, 4000), NotRecovered: []string{"conversation:h"}}))
	var types []string
	for _, text := range fake.Take(c, 1000) {
		var f struct {
			Type, Room string
			Token      string `json:"resume_token"`
		}
		require.NoError(t, json.Unmarshal(text, &f))
		if f.Type == "heartbeat" {
			p, known := w.hub.ReadResumeToken("bob", f.Token)
			require.True(t, known)
			require.NotContains(t, p, "feed", "the client's token did not contain this log")
		}
		if n := len(types); n == 0 || types[n-1] != f.Type+f.Room {
			types = append(types, f.Type+f.Room)
		}
	}
	require.Equal(t, []string{"not_recoveredconversation:h", "event", "heartbeat", "event"}, types)
	for _, owner := range w.chat.Catalog.Logs() {
		w.hub.Shard(owner).Attach(c, hub.Attachment{})
	}
	require.Contains(t, string(fake.Take(c, 10)[0]), `"not_recovered":["conversation:h"]`)
}

func TestReply_DoesNotCountAgainstTheQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Bytes: 5000}})
	c := w.connect(t, "bob", nil, 0)
	w.deliver(w.began(`["bob"]`))
	free := 0
	for range 5 {
		c.Reply([]byte(strings.Repeat("x", 4000)), func() { free++ })
	}
	w.deliver(w.sent("one"))
	_, ended := c.Reason()
	require.False(t, ended, "answers do not count against the queue")
	require.Zero(t, free)
	require.Len(t, fake.Take(c, 3), 3)
	require.Equal(t, 2, free, "taken is called when the answer is written")
	c.Close(hub.Lost)
	require.Equal(t, 5, free)
	c.Reply(nil, func() { free++ })
	require.Equal(t, 6, free)
}

func TestQueue_AQueueThatIsReadMayBeLonger(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 10, Stall: time.Hour}})
	c := w.connect(t, "bob", nil, 0)
	w.deliver(w.began(`["bob"]`))
	require.Len(t, fake.Take(c, 1), 1) // the client reads, although slowly
	var want []string
	for n := range 50 {
		want = append(want, fmt.Sprint(n))
		w.deliver(w.sent(want[n]))
	}
	require.Equal(t, want, seen(t, c))
	for range 100 {
		w.deliver(w.sent("more"))
	}
	reason, _ := c.Reason()
	require.Equal(t, hub.Slow, reason, "the queue of a client that reads is bounded, too")
}

// A flush writes the frames that wait for a connection. It must start when a frame waits and no flush is running, and
// end when no frame waits.
func TestBind_FlushesOnDemand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	c := w.connect(t, "bob", nil, 0)
	taken, ends := make(chan string, 1000), make(chan hub.Reason, 2)
	reasons := make(chan *hub.Reason, 2)
	c.Bind(func() {
		for {
			frames, reason, more := c.Next(nil, 64)
			if !more {
				return
			}
			if len(frames) == 0 && reason != nil {
				reasons <- reason
				return
			}
			for _, f := range frames {
				taken <- string(f)
			}
		}
	}, func(r hub.Reason) { ends <- r })
	for n := range 500 {
		c.Send(frame.Done(fmt.Sprint(n)))
		if n%7 == 0 {
			require.Eventually(t, func() bool { return len(taken) == n+1 }, 5*time.Second, time.Microsecond)
		}
	}
	c.Close(hub.SessionEnded)
	require.Equal(t, hub.SessionEnded, *<-reasons)
	require.Equal(t, hub.SessionEnded, <-ends)
	for n := range 500 {
		require.Equal(t, fmt.Sprintf(`{"type":"reply","reply_to":"%d","ok":true}`, n), <-taken)
	}
	require.Contains(t, <-taken, `"type":"closing"`)
}

// A flush ends when Next returns false as its result more, or when Next returns no frames and the reason why the
// connection ends. No other flush may start before the end of a flush, or after a flush that got the reason. Two
// concurrent flushes would mix up their frames, and both would write the closing frame.
func TestBind_RunsOneFlushAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	c := w.connect(t, "bob", nil, 0)
	var flushes, writing atomic.Int32
	over, ended := make(chan int, 10), make(chan struct{}, 10)
	c.Bind(func() {
		flushes.Add(1)
		frames := 0
		for first := true; ; first = false {
			got, reason, more := c.Next(nil, 64)
			if !more {
				over <- frames
				return
			}
			if writing.Add(1) > 1 {
				t.Error("two flushes write")
			}
			frames += len(got)
			if first { // queue a frame while the transport writes a frame of its own
				c.Send(frame.Done("x"))
				c.Kick()
			}
			writing.Add(-1)
			if len(got) == 0 && reason != nil {
				ended <- struct{}{}
				return
			}
		}
	}, func(hub.Reason) {})
	c.Kick()
	require.Equal(t, 1, <-over)
	c.Kick()
	require.Equal(t, 1, <-over)
	require.EqualValues(t, 2, flushes.Load())

	c.Close(hub.SessionEnded)
	<-ended
	c.Close(hub.Internal)
	c.Kick()
	c.Send(frame.Done("late"))
	require.EqualValues(t, 3, flushes.Load(), "no flush starts after one to which Next has returned the reason")
}

func TestRestored_ClientsConnectAgainAndNothingOfBeforeIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	w.shard.SetIncarnation("one", 0)
	w.deliver(w.began(`["bob"]`), w.sent("lost"))
	bob := w.connect(t, "bob", []string{"conversation:g"}, 2)
	w.shard.SetIncarnation("", 2)
	w.shard.SetIncarnation("one", 2)
	_, ended := bob.Reason()
	require.False(t, ended)

	w.shard.SetIncarnation("two", 1000)
	reason, _ := bob.Reason()
	require.Equal(t, hub.Restored, reason)
	require.True(t, reason.Reconnect)
	_, whole := w.shard.Buffered(2)
	require.False(t, whole)
	back := w.connect(t, "bob", []string{"conversation:g"}, 1000)
	w.shard.SetIncarnation("one", 2) // a partition that lags still has the old incarnation
	e := w.sent("new")
	e.Position = 1001
	w.deliver(e)
	_, ended = back.Reason()
	require.False(t, ended)
	require.Equal(t, []string{"new"}, seen(t, back))

	require.False(t, hub.Point{Incarnation: hub.IncarnationOf("one")}.Holds(hub.IncarnationOf("two")))
	require.True(t, hub.Point{}.Holds(hub.IncarnationOf("two")))
}

// An event closes a room for some of its members. Deliver must reach each member once, although it removes some members
// from the room before it iterates over the others.
func TestDeliver_ClosingARoomForSomeUsersReachesAllMembersOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{})
	w.deliver(w.began(`["alice","bob","carol"]`))
	var all []*hub.Conn
	for _, user := range []string{"bob", "alice", "bob", "carol", "bob"} {
		all = append(all, w.connect(t, user, []string{"conversation:g"}, 1))
	}
	w.deliver(w.member("chat.member_left", "bob"), w.sent("after"))
	for _, c := range all {
		want := []string{"member_left bob", "after"}
		if c.User == "bob" {
			want = want[:1]
		}
		require.Equal(t, want, seen(t, c), c.User)
	}
	require.Empty(t, slices.Concat(fake.Take(all[0], 1), fake.Take(all[2], 1), fake.Take(all[4], 1)))
}

func TestSignal_GoesToMembersByTheLogOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hub.Options{Limits: hub.Limits{Frames: 3, Stall: time.Nanosecond}})
	w.deliver(w.began(`["alice","bob"]`))
	const room = "conversation:g"
	alice, bob := w.connect(t, "alice", []string{room}, 1), w.connect(t, "bob", []string{room}, 1)
	eve := w.connect(t, "eve", nil, 1)
	require.True(t, w.shard.Subscribe(eve, hub.Authorization{Room: room, Position: 1, Until: time.Now().Add(time.Minute)}))
	require.True(t, w.shard.IsMember(alice, room))
	require.False(t, w.shard.IsMember(eve, room), "a subscription is not a membership")
	require.True(t, w.shard.IsMember(bob, "user:bob"))
	require.False(t, w.shard.IsMember(eve, "user:bob"))

	require.Equal(t, 1, w.shard.Signal(room, alice.ID, "a", typing("1")))
	require.Equal(t, 1, w.shard.Signal(room, alice.ID, "a", typing("2")))
	require.Empty(t, fake.Take(eve, 1))
	require.Empty(t, fake.Take(alice, 1))
	w.deliver(w.sent("x"), w.sent("y"))
	require.Contains(t, string(fake.Take(bob, 1)[0]), `"actor":"2"`, "the newest signal with the key")
	w.shard.Signal(room, alice.ID, "a", typing("3"))
	w.deliver(w.sent("z"))
	require.Equal(t, []string{"x", "y", "z"}, seen(t, bob), "the signal is dropped first")

	w.deliver(w.member("chat.member_left", "bob"))
	fake.Take(bob, 1)
	require.False(t, w.shard.IsMember(bob, room))
	require.Zero(t, w.shard.Signal(room, alice.ID, "a", typing("")))
}

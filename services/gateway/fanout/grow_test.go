package fanout

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// A topic gets more partitions under traffic, and its partitions are read at different speeds. Every conversation must
// stay in order, and no event may be lost or delivered twice.
func TestGrow_StreamsStayInOrderWhicheverPartitionIsReadFirst(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := begin(t)
		records := map[int32][]envelope.Event{}
		put := func(e envelope.Event) { n := w.chat.Partition(e); records[n] = append(records[n], e) }
		for c := range 8 {
			e, n := w.started(fmt.Sprint("c", c))
			records[n] = append(records[n], e)
		}
		sent := map[string]int{}
		talk := func() {
			for range 60 {
				c := fmt.Sprint("c", r.IntN(8))
				sent[c]++
				put(w.messageSent(c, fmt.Sprint(c, "-", sent[c])))
			}
		}
		talk()
		for count := int32(4); count <= 6; count += 2 {
			for n, fence := range w.chat.Grow("chat-events", count) {
				records[int32(n)] = append(records[int32(n)], fence)
			}
			talk()
		}
		if lost := records[1]; r.IntN(2) == 0 && len(lost) > 10 { // remove a record, which leaves a gap to fill
			if at := 5; !lost[at].Fence {
				records[1] = append(lost[:at:at], lost[at+1:]...)
			}
		}
		var reading sync.WaitGroup
		for n, list := range records {
			pace := time.Duration(r.IntN(100)) * time.Microsecond
			reading.Go(func() {
				for i := range list {
					time.Sleep(pace)
					w.partition(n).takeRetrying(t.Context(), w.fan, &list[i])
					if i > 0 {
						w.partition(n).takeRetrying(t.Context(), w.fan, &list[i-1]) // a repeat
					}
				}
			})
		}
		reading.Wait()
		got := map[string]int{}
		for _, body := range w.seen(t) {
			var c string
			var n int
			if _, err := fmt.Sscanf(body, "%2s-%d", &c, &n); err != nil {
				continue // a conversation_started event
			}
			got[c]++
			require.Equal(t, got[c], n, "seed %d: %s", seed, body)
		}
		require.Equal(t, sent, got, "seed %d", seed)
		for _, p := range w.fan.topics["chat-events"].all() {
			require.EqualValues(t, 3, p.epoch.Load())
		}
	}
}

// A gateway reads the fence in the old partitions before it finds the new partition. Until the gateway reads the new
// partition, no position above the fence may count as complete. Otherwise a client that resumes from such a position
// would miss events of the new partition.
func TestGrow_NoPositionIsCompleteBeforeTheNewPartitionIsRead(t *testing.T) {
	t.Parallel()
	w := begin(t)
	for n := range int32(3) {
		w.take(t, n, w.chat.Position("chat-events", n))
	}
	fences := w.chat.Grow("chat-events", 4)
	var inNew string
	for n := 0; inNew == ""; n++ {
		e := w.chat.Event("alice", "chat.conversation_started", fmt.Sprintf(`{"conversation_id":"n%d","user_ids":["bob"]}`, n))
		if w.chat.Partition(e) == 3 {
			inNew = fmt.Sprint("n", n)
		}
	}
	first, at := w.started(inNew)
	require.EqualValues(t, 3, at)
	var reading sync.WaitGroup
	for n := range int32(3) {
		reading.Go(func() {
			w.take(t, n, fences[n])
			w.take(t, n, w.chat.Position("chat-events", n))
		})
	}
	reading.Wait()
	complete := func() catalog.Position { return w.fan.logs["chat"].complete() }
	require.Equal(t, fences[0].Position, complete())
	w.take(t, 3, fences[3], first)
	require.Equal(t, first.Position, complete())
	require.Equal(t, []string{"chat.conversation_started"}, w.seen(t))
}

// A relay that has lost its lease publishes an event with the old number of partitions, after the fence. The gateway
// must drop this record as a repeat, because the new epoch contains the same event in another partition.
func TestGrow_RecordsOfAnEpochThatIsOverAreRepeats(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	w.take(t, p, first)
	late := w.messageSent("g", "one")
	fences := w.chat.Grow("chat-events", 4)
	var reading sync.WaitGroup
	for n := range int32(4) {
		reading.Go(func() { w.take(t, n, fences[n]) })
	}
	reading.Wait()
	require.Equal(t, []string{"chat.conversation_started", "one"}, w.seen(t), "the gap is filled at the fence")
	late.Epoch, late.Partitions, late.Position, late.Before = 1, 3, late.Position+10, late.Position
	w.take(t, p, late)
	require.Empty(t, w.seen(t))
}

// The broker has deleted the fence of one partition along with other records. The gateway then does not know which of
// the missing events were in this partition. The gateway must close all connections, so that the clients resume.
func TestGrow_WithoutAFenceConnectionsAreClosedToResume(t *testing.T) {
	t.Parallel()
	w := begin(t)
	first, p := w.started("g")
	first.Epoch, first.Partitions = 1, 3
	for n := range int32(3) {
		position := w.chat.Position("chat-events", n)
		position.Epoch, position.Partitions = 1, 3
		w.take(t, n, position)
	}
	fences := w.chat.Grow("chat-events", 4)
	for n := range int32(4) {
		if n != p {
			w.partition(n).epoch.Store(2)
		}
	}
	w.messageSent("g", "lost")
	e := w.chat.Position("chat-events", p)
	e.Position, e.Before = fences[0].Position+5, fences[0].Position+1
	w.take(t, p, e)
	reason, ended := w.conn.Reason()
	require.True(t, ended)
	require.Equal(t, hub.Interrupted, reason)
	require.True(t, reason.Reconnect)
}

func TestIncarnation_AChangeClosesConnectionsAndDropsNoEvent(t *testing.T) {
	t.Parallel()
	w := begin(t)
	w.chat.Restore("one")
	first, p := w.started("g")
	w.take(t, p, first, w.messageSent("g", "lost by the database"))
	require.Len(t, w.seen(t), 2)
	w.chat.Restore("two")
	next := w.messageSent("g", "new")
	w.take(t, p, next)
	reason, ended := w.conn.Reason()
	require.True(t, ended)
	require.Equal(t, hub.Restored, reason)
	back, err := w.fan.options.Hub.Add("bob", frame.JSON)
	require.NoError(t, err)
	w.conn = back
	require.True(t, w.fan.options.Hub.Shard("chat").Attach(back, hub.Attachment{Rooms: []string{"conversation:g"}, Position: next.Position}))
	w.take(t, p, w.messageSent("g", "newer"))
	require.Equal(t, []string{"newer"}, w.seen(t))
}

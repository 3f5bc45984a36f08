package ws_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/intake"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// works checks that a hostile user does not affect other users: another user can connect, send a command, and get an
// event.
func (m *mesh) works(t testing.TB) {
	t.Helper()
	got := make(chan client.Event, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	alice, err := client.Dial(ctx, client.Options{URL: m.url, Token: "alice", OnEvent: func(e client.Event) {
		select {
		case got <- e:
		default:
		}
	}})
	require.NoError(t, err)
	defer alice.Close()
	_, err = alice.Command(ctx, "chat.send_message", map[string]string{"conversation_id": "g", "body": "hi"})
	require.NoError(t, err)
	e := m.chat.Append("bob", "chat.message_sent", `{"conversation_id":"g","message_id":"m","body":"hi"}`)
	declared, _ := m.catalog.Event(e.Type)
	m.hub.Shard("chat").Deliver(hub.NewEvent(e, declared))
	select {
	case <-got:
	case <-ctx.Done():
		t.Fatal("nothing is delivered")
	}
}

// hostile is a user with several connections that send frames. It counts the answers, and the refusals by code.
type hostile struct {
	sockets []*websocket.Conn
	mu      sync.Mutex
	codes   map[string]int
	answers atomic.Int64
}

func (m *mesh) hostile(t testing.TB, connections int) *hostile {
	t.Helper()
	h := &hostile{codes: map[string]int{}}
	for range connections {
		socket, _, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer eve"}})
		require.NoError(t, err)
		t.Cleanup(func() { _ = socket.Close() })
		write(t, socket, connectFrame)
		h.sockets = append(h.sockets, socket)
		go func() {
			for {
				_, text, err := socket.ReadMessage()
				if err != nil {
					return
				}
				var f received
				if json.Unmarshal(text, &f) != nil || f.ReplyTo == "connect" || f.Type == "heartbeat" {
					continue
				}
				h.mu.Lock()
				if refused := f.refused(); refused != nil {
					h.codes[refused.Code]++
				}
				h.mu.Unlock()
				h.answers.Add(1)
			}
		}()
	}
	return h
}

// send sends the given number of frames on each connection, all connections at once.
func (h *hostile) send(each int, frame func(socket, n int) string) {
	var sending sync.WaitGroup
	for s, socket := range h.sockets {
		sending.Go(func() {
			for n := range each {
				if socket.WriteMessage(websocket.TextMessage, []byte(frame(s, n))) != nil {
					return
				}
			}
		})
	}
	sending.Wait()
}

func (h *hostile) refused(code string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.codes[code]
}

func undecided(c envelope.Command) bool { return c.Actor == "eve" }

func command(s, n int) string {
	return fmt.Sprintf(`{"id":"%d","type":"chat.send_message","command_id":"%d-%d","data":{"conversation_id":"g","body":"hi"}}`,
		n, s, n)
}

func TestHostile_CommandsWithoutOutcomeCountForTheirUserOnly(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]intake.Options{
		"the limit of the user": {}, "the count of the gateway": {MaxWaiting: 600},
		"the bytes of the gateway": {MaxBytes: 200_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) { s.intake, s.mesh.silent = o, undecided })
			m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
			h := m.hostile(t, 64)
			h.send(32, command) // 2,048 commands, of which at most 1,024 may wait
			require.Eventually(t, func() bool { return h.refused(refusal.TooManyWaiting) >= 64*32-1024 }, 20*time.Second,
				10*time.Millisecond)
			m.works(t)
		})
	}
}

func TestHostile_LongIDsAreRefusedAndNotKept(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) { s.mesh.silent = undecided })
	m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
	h := m.hostile(t, 1)
	long := strings.Repeat("i", 60_000)
	h.send(50, func(_, n int) string {
		return fmt.Sprintf(`{"id":"%s","type":"chat.send_message","command_id":"%d","data":{"conversation_id":"g","body":"hi"}}`, long, n)
	})
	require.Eventually(t, func() bool { return h.refused(refusal.InvalidField) == 50 }, 20*time.Second, time.Millisecond)
	h.send(1, func(int, int) string { return `{"id":"p","type":"ping"}` })
	// The gateway has sent 50 refusals and the reply to the ping.
	require.Eventually(t, func() bool { return h.answers.Load() == 51 }, 20*time.Second, time.Millisecond,
		"the connection stays open")
	m.works(t)
}

// Many commands, in frames of 60 kB, wait for their outcomes. The gateway must keep only the body of a waiting command,
// and not its frame. Otherwise the maximum of 512 waiting commands of one connection would take 30 MB.
func TestHostile_WaitingCommandsKeepNoFrames(t *testing.T) {
	m := begin(t, ws.Options{}, hub.Options{}, func(s *setup) { s.mesh.silent = undecided })
	h := m.hostile(t, 1)
	const commands = 300
	before := heap()
	h.send(commands, func(s, n int) string { return command(s, n) + strings.Repeat(" ", 60_000) })
	h.send(1, func(int, int) string { return `{"id":"p","type":"ping"}` })
	require.Eventually(t, func() bool { return h.answers.Load() >= 1 }, 20*time.Second, time.Millisecond)
	require.Less(t, heap()-before, int64(commands*60_000/3))
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

func TestHostile_MalformedFramesAndUnknownTypes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("z", 64_000)
	for name, frame := range map[string]string{
		"malformed": `{"id":`, "unknown": `{"id":"1","type":"` + long + `"}`, "pings": `{"id":"1","type":"ping"}`,
		"unsubscribe": `{"id":"1","type":"unsubscribe","data":{"rooms":["presence:bob"]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := begin(t, ws.Options{}, hub.Options{})
			m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
			h := m.hostile(t, 4)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				h.send(300, func(int, int) string { return frame })
			}()
			m.works(t)
			<-sent
			m.works(t)
			require.Eventually(t, func() bool { return h.answers.Load() == 4*300 }, 30*time.Second, 10*time.Millisecond,
				"each frame is answered, and the connections stay")
		})
	}
}

func TestHostile_SubscriptionsAreBoundedForTheUser(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
	h := m.hostile(t, 8)
	h.send(20, func(s, n int) string { // 8 connections subscribe to 1,600 rooms
		var rooms []string
		for i := range 10 {
			rooms = append(rooms, fmt.Sprintf(`"presence:p%d-%d-%d"`, s, n, i))
		}
		return fmt.Sprintf(`{"id":"%d","type":"subscribe","data":{"rooms":[%s]}}`, n, strings.Join(rooms, ","))
	})
	require.Eventually(t, func() bool { return h.refused(refusal.TooManyWaiting) > 0 }, 20*time.Second, time.Millisecond)
	m.works(t)
}

// A user sends queries on five connections, and reads the answers on only one of them. Once the waiting answers reach
// the user's limit, further answers to this user must be refused, also on the connection that is read. Other users must
// get their answers.
func TestHostile_AnswersThatAreNotReadAreBounded(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{WriteWait: time.Minute}, hub.Options{Limits: hub.Limits{UserBytes: 2 << 20}})
	const size = 500_000 // more than an equal share of the limit; answers within such a share are not refused
	page := fmt.Sprintf(`{"messages":[{"body":%q}]}`, strings.Repeat("x", size))
	m.chat.OnQuery(func(string, fake.Question) (string, error) { return page, nil })
	const ask = `{"id":"q","type":"chat.history","data":{"conversation_id":"g"}}`
	reads := m.raw(t, "eve")
	require.NoError(t, reads.SetReadDeadline(time.Now().Add(time.Minute)))
	ready(t, reads)
	var stuck []*websocket.Conn
	for range 4 {
		socket := m.raw(t, "eve")
		require.NoError(t, socket.NetConn().(*net.TCPConn).SetReadBuffer(4<<10))
		stuck = append(stuck, socket)
		for range 8 { // 16 MB on the four connections
			write(t, socket, ask)
		}
	}
	require.Eventually(t, func() bool {
		write(t, reads, ask)
		f := read(t, reads)
		return f.Error != nil && f.Error.Code == refusal.TooManyWaiting
	}, 20*time.Second, time.Millisecond)
	alice := m.dial(t, client.Options{})
	var answer struct{ Messages []struct{ Body string } }
	require.NoError(t, alice.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, &answer))
	require.Len(t, answer.Messages[0].Body, size)
	for _, socket := range stuck {
		_ = socket.Close()
	}
	require.Eventually(t, func() bool {
		write(t, reads, ask)
		return read(t, reads).OK
	}, 20*time.Second, time.Millisecond, "answers of closed connections no longer count")
}

func TestHostile_ConnectionsAreBoundedInTime(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
	refused := false
	for n := 0; n < 1000 && !refused; n++ {
		socket, _, err := websocket.DefaultDialer.Dial(m.url, http.Header{"Authorization": {"Bearer eve"}})
		require.NoError(t, err)
		write(t, socket, connectFrame)
		if n > 250 { // the first 250 connections are not refused
			refused = read(t, socket).Code == hub.TooFast.Code
		} else {
			ready(t, socket)
		}
		_ = socket.Close()
	}
	require.True(t, refused)
	m.works(t)
}

// BenchmarkHostile measures how long it takes until an ordinary user has connected, sent a command and got an event,
// first without and then with each hostile user. It reports the 99th percentile in milliseconds, and the ratio of this
// percentile to the one without a hostile user.
func BenchmarkHostile(b *testing.B) {
	long := strings.Repeat("i", 60_000)
	users := []struct {
		name        string
		connections int
		frame       func(s, n int) string
	}{
		{"quiet", 0, nil},
		{"commands", 64, command},
		{"ids", 8, func(_, n int) string { return fmt.Sprintf(`{"id":"%s%d","type":"ping"}`, long, n) }},
		{"malformed", 8, func(int, int) string { return `{"id":` }},
		{"types", 8, func(int, int) string { return `{"id":"1","type":"` + long + `"}` }},
	}
	quiet := 0.0
	for _, u := range users {
		b.Run(u.name, func(b *testing.B) {
			m := begin(b, ws.Options{}, hub.Options{}, func(s *setup) { s.mesh.silent = undecided })
			m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice","bob"]}`)
			h := m.hostile(b, u.connections)
			ctx, cancel := context.WithCancel(context.Background())
			var sending sync.WaitGroup
			for s, socket := range h.sockets {
				sending.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						frame := []byte(u.frame(s, n))
						if socket.WriteMessage(websocket.TextMessage, frame) != nil {
							return
						}
						// All hostile senders together send twice as many frames as the gateway accepts. They do not
						// send more, because they use the CPU time of the gateway's process.
						time.Sleep(time.Duration(u.connections*quota.Cost(len(frame))) * time.Second / 4000)
					}
				})
			}
			var took []float64
			for b.Loop() {
				at := time.Now()
				m.works(b)
				took = append(took, float64(time.Since(at).Microseconds())/1000)
			}
			cancel()
			for _, socket := range h.sockets {
				_ = socket.Close()
			}
			sending.Wait()
			slices.Sort(took)
			p99 := took[len(took)*99/100]
			if u.connections == 0 {
				quiet = p99
			}
			b.ReportMetric(p99, "p99-ms")
			b.ReportMetric(p99/quiet, "x-quiet")
		})
	}
}

//go:build unix

package gateway

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/quota"
	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/process"
)

// ordinary measures how long the actions of ordinary users take: one user sends a message, another gets it, and a third
// connects.
func (m *mesh) ordinary(t testing.TB, address string, n int) (l meshtest.Latencies) {
	t.Helper()
	alice := connect(t, address, "alice")
	got := make(chan time.Time, n)
	bob := connect(t, address, "bob", func(o *client.Options) { o.OnEvent = func(client.Event) { got <- time.Now() } })
	defer bob.Close()
	defer alice.Close()
	for i := range n {
		began := time.Now()
		_, err := alice.Command(t.Context(), "chat.send_message", hello)
		require.NoError(t, err)
		l.Command = append(l.Command, time.Since(began))
		select {
		case at := <-got:
			l.Deliver = append(l.Deliver, at.Sub(began))
		case <-time.After(10 * time.Second):
			t.Fatal("bob got no event")
		}
		if i%2 == 0 {
			began = time.Now()
			c := connect(t, address, fmt.Sprint("u", i))
			l.Connect = append(l.Connect, time.Since(began))
			c.Close()
		}
	}
	return l
}

// hostilities are the attacks of a hostile user, by name. An attack sends frames or opens connections as fast as the
// gateway admits them from one user, until its process is killed. Each attack runs in a process of its own, so that its
// CPU time does not count as the gateway's.
var hostilities = map[string]func(address, token string){
	// The user, who is in 2,000 rooms, resumes up to ten times per second, with a resume token from before all events.
	"returns": func(address, token string) {
		old := os.Getenv("GATEWAY_HOSTILE_RESUME_TOKEN")
		for tick := time.NewTicker(time.Second / 10); ; <-tick.C {
			socket := hostileSocket(address, fmt.Sprintf(`{"id":"c","type":"connect","data":{"resume_token":%q}}`, old), token)
			for {
				_, text, err := socket.ReadMessage()
				if err != nil || bytes.HasPrefix(text, []byte(`{"type":"reply"`)) {
					break
				}
			}
			_ = socket.Close()
		}
	},
	// The user sends commands on 64 connections. No owner decides these commands, so the user soon has the maximum
	// number of commands without an outcome.
	"commands": func(address, token string) {
		hostileFrames(address, token, 64, 2000, func(s, n int) string {
			return fmt.Sprintf(`{"id":"%d","type":"chat.send_message","command_id":"%d-%d","data":{"conversation_id":"e1","body":"hi"}}`,
				n, s, n)
		})
	},
	// The user sends pings with ids of 60 kB. The gateway refuses them.
	"ids": func(address, token string) {
		long := strings.Repeat("i", 60_000)
		hostileFrames(address, token, 8, 2000/quota.Cost(60_000), func(_, n int) string {
			return fmt.Sprintf(`{"id":"%s%d","type":"ping"}`, long, n)
		})
	},
	// The user subscribes to the same room again and again.
	"subscriptions": func(address, token string) {
		hostileFrames(address, token, 1, 1000, func(int, int) string {
			return `{"id":"l","type":"subscribe","data":{"rooms":["post:7"]}}`
		})
	},
}

func hostileSocket(address, connect, token string) *websocket.Conn {
	for {
		socket, _, err := websocket.DefaultDialer.Dial("ws://"+address+"/ws", http.Header{"Authorization": {"Bearer " + token}})
		if err == nil && socket.WriteMessage(websocket.TextMessage, []byte(connect)) == nil {
			return socket
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// hostileFrames sends frames over the given number of connections until all of them have ended, and discards the
// replies. The rate is the number of frames per second on all connections together.
func hostileFrames(address, token string, connections, rate int, frame func(s, n int) string) {
	var sending sync.WaitGroup
	for s := range connections {
		socket := hostileSocket(address, `{"id":"c","type":"connect"}`, token)
		go func() {
			for {
				_, r, err := socket.NextReader()
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, r)
			}
		}()
		sending.Go(func() {
			tick := time.NewTicker(time.Duration(connections) * time.Second / time.Duration(rate))
			for n := 0; socket.WriteMessage(websocket.TextMessage, []byte(frame(s, n))) == nil; n++ {
				<-tick.C
			}
		})
	}
	sending.Wait()
}

// TestMain runs an attack instead of the tests if the environment variable GATEWAY_HOSTILE names one.
func TestMain(m *testing.M) {
	if hostile := hostilities[os.Getenv("GATEWAY_HOSTILE")]; hostile != nil {
		hostile(os.Getenv("GATEWAY_HOSTILE_ADDRESS"), os.Getenv("GATEWAY_HOSTILE_TOKEN"))
		return
	}
	os.Exit(m.Run())
}

// beHostile starts a process that runs the attack with the given name. The returned function ends the process, and
// returns the CPU time that the process has used.
func (m *mesh) beHostile(t testing.TB, name, address string) (end func() time.Duration) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "GATEWAY_HOSTILE="+name, "GATEWAY_HOSTILE_ADDRESS="+address,
		"GATEWAY_HOSTILE_TOKEN="+token(t, "eve", ""), "GATEWAY_HOSTILE_RESUME_TOKEN="+
			m.reader().ResumeToken("eve", hub.Progress{"chat": {}, "feed": {}, "notification": {}}))
	require.NoError(t, c.Start())
	return func() time.Duration {
		_ = c.Process.Kill()
		_ = c.Wait()
		return c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	}
}

// cpu returns the CPU time of this process: the gateway, its broker and owners, and the users that are measured.
func cpu(t testing.TB) time.Duration {
	var used syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkHostile measures, for each attack, how long the actions of ordinary users take, with and without a hostile
// user. Measurements with and without the hostile user alternate in one run, because the machine may be busy with other
// work. The hostile user's process runs on the same cores as the gateway, and thereby slows ordinary users down,
// whatever the gateway does. Therefore the benchmark also prints the CPU time of that process.
func BenchmarkHostile(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(hostilities)) {
		b.Run(name, func(b *testing.B) { benchmarkHostile(b, name) })
	}
}

func benchmarkHostile(b *testing.B, name string) {
	process.TuneMemory(process.OneService, slog.New(slog.DiscardHandler)) // as a gateway does when it starts
	m := begin(b)
	m.onCommand(func(c envelope.Command) {
		if c.Actor != "eve" {
			m.commits(c)
		}
	})
	m.start(`["alice","bob"]`)
	chat := m.owners["chat"]
	for n := range 2000 {
		chat.Append("eve", "chat.conversation_started", fmt.Sprintf(`{"conversation_id":"e%d","user_ids":["eve"]}`, n))
	}
	m.owners["feed"].Allow("eve", "post:7", true)
	address, _ := m.gateway(settings{})
	m.ordinary(b, address, 50) // warm up
	var quiet, beside meshtest.Latencies
	var quietTime, besideTime, quietCPU, besideCPU, own time.Duration
	measure := func(into *meshtest.Latencies, took, used *time.Duration) {
		began, before := time.Now(), cpu(b)
		into.Add(m.ordinary(b, address, 100))
		*took, *used = *took+time.Since(began), *used+cpu(b)-before
	}
	b.ResetTimer()
	for range b.N {
		for range 6 {
			measure(&quiet, &quietTime, &quietCPU)
			end := m.beHostile(b, name, address)
			time.Sleep(500 * time.Millisecond) // let the hostile user connect
			measure(&beside, &besideTime, &besideCPU)
			own += end()
			time.Sleep(200 * time.Millisecond) // let the hostile user disconnect
		}
	}
	meshtest.ReportBeside(b, quiet, beside)
	b.Logf("CPU: %.2f of a core quiet, %.2f beside the hostile user, which itself uses %.2f (while it starts, too)",
		quietCPU.Seconds()/quietTime.Seconds(), besideCPU.Seconds()/besideTime.Seconds(), own.Seconds()/besideTime.Seconds())
}

package ws_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/services/gateway/ws"
	"github.com/edumatrix/interlinked/shared/client"
)

// slowLink limits the reading from a connection. The field rate is in bytes per second.
type slowLink struct {
	net.Conn
	rate int
}

func (c slowLink) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b[:min(len(b), 4096)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(c.rate))
	return n, err
}

// slow opens a socket over a link with the given rate, and sends the given connect frame.
func (m *mesh) slow(t *testing.T, token, connect string, rate int) *websocket.Conn {
	t.Helper()
	dialer := websocket.Dialer{ReadBufferSize: 4096, NetDialContext: func(ctx context.Context, network, address string) (
		net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return slowLink{c, rate}, c.(*net.TCPConn).SetReadBuffer(128 << 10)
	}}
	socket, _, err := dialer.DialContext(t.Context(), m.url, http.Header{"Authorization": {"Bearer " + token}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(3*time.Minute)))
	write(t, socket, connect)
	return socket
}

// hurried makes the gateway close a connection whose client gives no sign of life for 8 s. The transfers in these tests
// take longer, so a test fails if the gateway does not count a slow transfer as a sign of life. Even a busy machine can
// answer a ping within 8 s.
var hurried = ws.Options{Ping: 4 * time.Second}

func TestSlowLink_SixteenPagesAtOnceAreAllAnswered(t *testing.T) {
	t.Parallel()
	m := begin(t, hurried, hub.Options{})
	page := history(50, 8000, "x")
	m.chat.OnQuery(func(string, fake.Question) (string, error) { return page, nil })
	socket := m.slow(t, "alice", connectFrame, 600_000)
	ready(t, socket)
	for n := range 16 {
		write(t, socket, fmt.Sprintf(`{"id":"%d","type":"chat.history","data":{"conversation_id":"g"}}`, n))
	}
	answered := map[string]bool{}
	for len(answered) < 16 {
		f := read(t, socket)
		require.True(t, f.OK, "%+v", f.Error)
		answered[f.ReplyTo] = true
	}
	write(t, socket, `{"id":"again","type":"chat.history","data":{"conversation_id":"g"}}`)
	again := read(t, socket)
	require.True(t, again.OK, "answers that were read no longer count: %+v", again)
}

func TestFastLink_PagesOfEmojiDoNotEndTheConnection(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	page := history(200, 8000, "😀")
	m.chat.OnQuery(func(string, fake.Question) (string, error) { return page, nil })
	socket := m.raw(t, "alice")
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(time.Minute)))
	ready(t, socket)
	for n := range 4 {
		write(t, socket, fmt.Sprintf(`{"id":"%d","type":"chat.history","data":{"conversation_id":"g"}}`, n))
	}
	var answers [][]byte // decoded after all have arrived, so that the client reads fast even on a busy machine
	for len(answers) < 4 {
		_, text, err := socket.ReadMessage()
		require.NoError(t, err)
		if bytes.HasPrefix(text, []byte(`{"type":"reply"`)) {
			answers = append(answers, text)
		}
	}
	for _, text := range answers {
		var answer received
		require.NoError(t, json.Unmarshal(text, &answer))
		require.True(t, answer.OK, "%+v", answer.Error)
	}
}

func TestSlowLink_AClientRecoversMegabytes(t *testing.T) {
	t.Parallel()
	m := begin(t, hurried, hub.Options{})
	m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice"]}`)
	first := m.raw(t, "alice")
	token := ready(t, first).ResumeToken
	_ = first.Close()
	const missed = 900
	body := strings.Repeat("x", 4000)
	for n := range missed {
		m.chat.Append("alice", "chat.message_sent", fmt.Sprintf(`{"conversation_id":"g","message_id":"m%d","body":%q}`, n, body))
	}
	socket := m.slow(t, "alice", fmt.Sprintf(`{"id":"connect","type":"connect","data":{"resume_token":%q}}`, token), 350_000)
	pings := 0
	answer := socket.PingHandler()
	socket.SetPingHandler(func(payload string) error { pings++; return answer(payload) })
	events := 0
	for {
		f := read(t, socket)
		if f.Event != "" {
			events++
		}
		if f.ReplyTo == "connect" {
			break
		}
		require.Nil(t, f.Error)
	}
	require.Equal(t, missed, events)
	require.NotZero(t, pings, "pings do not wait behind missed events")
}

func TestSlowLink_AClientThatReadsNothingIsClosed(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{WriteWait: 500 * time.Millisecond}, hub.Options{PerUser: 1})
	page := history(50, 8000, "x")
	m.chat.OnQuery(func(string, fake.Question) (string, error) { return page, nil })
	socket := m.slow(t, "alice", connectFrame, 1_200_000)
	ready(t, socket)
	for n := range 16 {
		write(t, socket, fmt.Sprintf(`{"id":"%d","type":"chat.history","data":{"conversation_id":"g"}}`, n))
	}
	require.Eventually(t, func() bool { return m.gone("alice") }, time.Minute, 10*time.Millisecond)
}

// cutting starts a proxy to a gateway. The proxy cuts each connection after it has sent the given number of bytes to
// the client.
func cutting(t *testing.T, to string, after int64) (address string, cuts *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cuts = new(atomic.Int64)
	var open sync.WaitGroup
	pass := func(client net.Conn) {
		defer func() { _ = client.Close() }()
		gateway, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer func() { _ = gateway.Close() }()
		open.Go(func() { _, _ = io.Copy(gateway, client); _ = gateway.Close() })
		if n, _ := io.CopyN(client, gateway, after); n == after {
			cuts.Add(1)
		}
	}
	open.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			open.Go(func() { pass(client) })
		}
	})
	t.Cleanup(func() { _ = listener.Close(); open.Wait() })
	return listener.Addr().String(), cuts
}

// A proxy cuts each connection after 400 kB, like a link that transfers 20 kB/s and breaks every 20 seconds. A client
// has missed almost 4 MiB, which is the most that a client can recover. The client must be able to resume again and
// again until it has every event, once and in order.
func TestSlowLink_AClientThatIsCutOffCatchesUp(t *testing.T) {
	t.Parallel()
	for _, protobuf := range []bool{false, true} {
		t.Run(fmt.Sprint("protobuf=", protobuf), func(t *testing.T) {
			t.Parallel()
			m := begin(t, ws.Options{}, hub.Options{})
			m.chat.Append("alice", "chat.conversation_started", `{"conversation_id":"g","user_ids":["alice"]}`)
			var mu sync.Mutex
			var got []string
			first := m.dial(t, client.Options{Protobuf: protobuf, OnEvent: func(e client.Event) {
				var data struct {
					MessageID string `json:"message_id"`
				}
				_ = json.Unmarshal(e.Data, &data)
				mu.Lock()
				defer mu.Unlock()
				got = append(got, data.MessageID)
			}, OnNotRecovered: func(room string) { t.Error("not recovered: ", room) }})
			first.Abort()
			const missed = 970
			body := strings.Repeat("x", 4000)
			var want []string
			for n := range missed {
				want = append(want, fmt.Sprint("m", n))
				m.chat.Append("alice", "chat.message_sent", fmt.Sprintf(`{"conversation_id":"g","message_id":"m%d","body":%q}`, n, body))
			}
			address, cuts := cutting(t, strings.TrimSuffix(strings.TrimPrefix(m.url, "ws://"), "/ws"), 400_000)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			for tries := 0; ; tries++ {
				require.NoError(t, ctx.Err())
				require.Less(t, tries, 40, "the client makes no progress")
				last, err := first.Redial(ctx, "ws://"+address+"/ws")
				if err == nil {
					t.Cleanup(last.Close)
					require.True(t, last.Connected().Resumed)
					require.Empty(t, last.Connected().NotRecovered)
					break
				}
			}
			require.Greater(t, cuts.Load(), int64(8), "nothing was cut off")
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, want, got)
		})
	}
}

// A client sends a message of the maximum length with \u escapes: 8,000 emoji take 96 kB of JSON. The gateway must
// accept it, because the limit is in characters.
func TestFrame_ALongMessageOfEscapesIsTaken(t *testing.T) {
	t.Parallel()
	m := begin(t, ws.Options{}, hub.Options{})
	socket := m.raw(t, "alice")
	ready(t, socket)
	for _, c := range []struct {
		name, field string
		characters  int
	}{{"chat.send_message", `"conversation_id":"g",`, 8000}, {"feed.create_post", "", 20_000}} {
		write(t, socket, fmt.Sprintf(`{"id":"1","type":%q,"data":{%s"body":"%s"}}`, c.name, c.field,
			strings.Repeat(`\ud83d\ude00`, c.characters+1)))
		f := read(t, socket)
		require.NotNil(t, f.refused())
		require.Contains(t, f.refused().Message, fmt.Sprint(c.characters), "the limit is in characters")
	}
	write(t, socket, fmt.Sprintf(`{"id":"1","type":"chat.send_message","data":{"conversation_id":"g","body":"%s"}}`,
		strings.Repeat(`\ud83d\ude00`, 8000)))
	require.True(t, read(t, socket).OK)
}

// history returns an answer to chat.history with the given number of messages and of characters in each message.
func history(messages, characters int, character string) string {
	body := strings.Repeat(character, characters)
	var all []string
	for n := range messages {
		all = append(all, fmt.Sprintf(`{"messageId":"m%d","version":"%d","body":"%s"}`, n, n+1, body))
	}
	return `{"messages":[` + strings.Join(all, ",") + `]}`
}

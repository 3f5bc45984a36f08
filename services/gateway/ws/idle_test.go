package ws_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/services/gateway/ws"
)

// maxIdle is the maximum cost of an idle connection in bytes of heap and stacks. The cost includes the client's end of
// the connection, which is in the same process.
const maxIdle = 17_000

func TestIdleConnection_CostsLittle(t *testing.T) {
	cost, goroutines := idle(t, 300)
	for range 3 { // other memory that the process allocates at the same time can only increase the cost
		if cost < maxIdle {
			break
		}
		again, running := idle(t, 300)
		cost, goroutines = min(cost, again), min(goroutines, running)
	}
	t.Logf("%.1f kB and %.2f goroutines for each", cost/1000, goroutines)
	require.Less(t, cost, float64(maxIdle))
	require.Less(t, goroutines, 1.2, "only the reader has a goroutine")
}

// BenchmarkIdle measures the cost of each of 2,000 connections. Run it with
//
//	go test ./ws -run '^$' -bench Idle -benchtime 1x
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		cost, goroutines := idle(b, 2000)
		b.ReportMetric(cost, "B/connection")
		b.ReportMetric(goroutines, "goroutines/connection")
	}
}

// idle opens connections with the headers of a browser. After all are connected, it returns the bytes and the
// goroutines of each connection.
func idle(t testing.TB, sockets int) (cost, goroutines float64) {
	m := begin(t, ws.Options{}, hub.Options{PerUser: sockets})
	address := strings.TrimSuffix(strings.TrimPrefix(m.url, "ws://"), "/ws")
	open := func(n int) net.Conn {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		_, err = fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Pragma: no-cache\r\nCache-Control: no-cache\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"+
			"Accept-Language: de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7\r\nSec-WebSocket-Version: 13\r\n"+
			"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n"+
			"Cookie: %s\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer user%d\r\n\r\n", address,
			strings.Repeat("c", 500), n)
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
		r := bufio.NewReaderSize(c, 256)
		for {
			line, err := r.ReadString('\n')
			require.NoError(t, err)
			if line == "\r\n" {
				break
			}
		}
		_, err = c.Write(masked(connectFrame))
		require.NoError(t, err)
		head := make([]byte, 2)
		for head[0] == 0 || head[0] == 0x89 { // skip pings before the reply to connect
			_, err = io.ReadFull(r, head)
			require.NoError(t, err)
		}
		require.Equal(t, byte(0x81), head[0])
		return c
	}
	for range 50 { // the first connections allocate memory that all connections share
		warm := open(0)
		defer func() { _ = warm.Close() }()
	}
	before := memory()
	running := runtime.NumGoroutine()
	all := make([]net.Conn, sockets)
	for n := range all {
		all[n] = open(n + 1)
	}
	var after uint64
	var last int
	for range 50 { // until the goroutines that opened connections have ended
		after = memory()
		if now := runtime.NumGoroutine(); now == last {
			break
		}
		last = runtime.NumGoroutine()
		time.Sleep(20 * time.Millisecond)
	}
	cost = float64(int64(after-before)) / float64(sockets)
	goroutines = float64(runtime.NumGoroutine()-running) / float64(sockets)
	for _, c := range all {
		_ = c.Close()
	}
	return cost, goroutines
}

// masked returns a text of up to 125 bytes in a WebSocket frame of a client, with a mask of zeros.
func masked(text string) []byte {
	return append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...)
}

// memory returns the size of the live heap and of the stacks in use.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc + s.StackInuse
}

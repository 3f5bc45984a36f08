package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/client"
)

// latencies are those of one user's connects, commands and deliveries.
type latencies struct{ connect, command, deliver []time.Duration }

func (l *latencies) add(more latencies) {
	l.connect = append(l.connect, more.connect...)
	l.command = append(l.command, more.command...)
	l.deliver = append(l.deliver, more.deliver...)
}

func percentile(all []time.Duration, percent int) time.Duration {
	slices.Sort(all)
	return all[len(all)*percent/100]
}

// ordinary is what users do who are not hostile: one sends, the other gets it; somebody connects.
func (m *mesh) ordinary(t testing.TB, address string, n int) (l latencies) {
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
		l.command = append(l.command, time.Since(began))
		select {
		case at := <-got:
			l.deliver = append(l.deliver, at.Sub(began))
		case <-time.After(10 * time.Second):
			t.Fatal("bob gets nothing")
		}
		if i%2 == 0 {
			began = time.Now()
			c := connect(t, address, fmt.Sprint("u", i))
			l.connect = append(l.connect, time.Since(began))
			c.Close()
		}
	}
	return l
}

// BenchmarkHostile measures others while a user is in 2,000 rooms, comes back again and again after a long time, and
// subscribes as fast as it may. Quiet and hostile rounds take turns, since the machine may have other things to do.
func BenchmarkHostile(b *testing.B) {
	m := begin(b)
	m.onCommand(m.commits)
	m.start(`["alice","bob"]`)
	chat := m.owners["chat"]
	for n := range 2000 {
		chat.Append("eve", "chat.conversation_started", fmt.Sprintf(`{"conversation_id":"e%d","user_ids":["eve"]}`, n))
	}
	m.owners["feed"].Allow("eve", "post:7", true)
	address, _ := m.gateway(settings{})
	m.ordinary(b, address, 20) // warm
	var quiet, hostile latencies
	b.ResetTimer()
	for range b.N {
		for range 4 {
			quiet.add(m.ordinary(b, address, 50))
			stop := beHostile(b, address)
			hostile.add(m.ordinary(b, address, 50))
			stop()
		}
	}
	for _, of := range []struct {
		what           string
		quiet, hostile []time.Duration
	}{{"connect", quiet.connect, hostile.connect}, {"command", quiet.command, hostile.command},
		{"delivery", quiet.deliver, hostile.deliver}} {
		for _, percent := range []int{50, 99} {
			before, beside := percentile(of.quiet, percent), percentile(of.hostile, percent)
			b.Logf("%s: p%d %s quiet, %s beside a hostile user: %.1f x", of.what, percent, before.Round(10*time.Microsecond),
				beside.Round(10*time.Microsecond), float64(beside)/float64(before))
			b.ReportMetric(float64(beside)/float64(before), fmt.Sprintf("x-p%d-%s", percent, of.what))
		}
	}
}

// beHostile has eve come back and subscribe until it is stopped.
func beHostile(t testing.TB, address string) (end func()) {
	ctx, stop := context.WithCancel(t.Context())
	var hostile sync.WaitGroup
	old := hub.Mark{"chat": {}, "feed": {}, "notification": {}}.String()
	hostile.Go(func() {
		for ctx.Err() == nil {
			c, err := client.Dial(ctx, client.Options{URL: "ws://" + address + "/ws", Token: token(t, "eve", ""), Resume: old})
			if err == nil {
				c.Close()
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	hostile.Go(func() {
		c, err := client.Dial(ctx, client.Options{URL: "ws://" + address + "/ws", Token: token(t, "eve", "")})
		if err != nil {
			return
		}
		defer c.Close()
		for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
			_ = c.Write([]byte(`{"id":"l","type":"look","data":{"rooms":["post:7"]}}`))
		}
	})
	return func() { stop(); hostile.Wait() }
}

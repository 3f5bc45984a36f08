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
func (m *mesh) ordinary(t *testing.T, address string, n int) (l latencies) {
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

// A user is in 2,000 rooms, comes back again and again after a long time, and subscribes as fast as it may.
func TestHostile_ManyRoomsReturnsAndSubscriptionsCostOthersLittle(t *testing.T) {
	m := begin(t)
	m.onCommand(m.commits)
	m.start(`["alice","bob"]`)
	chat := m.owners["chat"]
	for n := range 2000 {
		chat.Append("eve", "chat.conversation_started", fmt.Sprintf(`{"conversation_id":"e%d","user_ids":["eve"]}`, n))
	}
	m.owners["feed"].Allow("eve", "post:7", true)
	address, _ := m.gateway(settings{})
	m.ordinary(t, address, 20) // warm
	var quiet, busy latencies
	for range 4 { // interleaved, since the machine may have other things to do
		quiet.add(m.ordinary(t, address, 50))
		stop := beHostile(t, address)
		busy.add(m.ordinary(t, address, 50))
		stop()
	}
	for what, pair := range map[string][2][]time.Duration{"connect": {quiet.connect, busy.connect},
		"command": {quiet.command, busy.command}, "delivery": {quiet.deliver, busy.deliver}} {
		for _, percent := range []int{50, 99} {
			q, b := percentile(pair[0], percent), percentile(pair[1], percent)
			t.Logf("%s: p%d %s quiet, %s beside a hostile user: %.1f x", what, percent, q.Round(10*time.Microsecond),
				b.Round(10*time.Microsecond), float64(b)/float64(q))
			// What the machine is busy with besides is in it. Where one user holds up others it is seconds.
			require.Less(t, b, time.Second, what)
		}
	}
}

// beHostile has eve come back and subscribe until it is stopped.
func beHostile(t *testing.T, address string) (end func()) {
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

package rooms_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// A client subscribes to rooms faster than the owner answers. This must not delay clients that connect: calls for
// subscriptions and calls for the rooms of users must run at the same time.
func TestSubscribe_AnOverloadedOwnerDelaysNoConnect(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	close(w.known)
	feed := w.owners["feed"]
	feed.Allow("bob", "post:7", true)
	const call = 50 * time.Millisecond
	feed.Slow(call)
	bob := w.connect(t, "bob")
	require.Equal(t, "connect", await(t, bob)["reply_to"])
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var authorizations atomic.Int64
	go func() { // ten subscriptions during each call
		for tick := time.NewTicker(call / 10); ctx.Err() == nil; <-tick.C {
			w.rooms.Subscribe(bob, "post:7", func(bool) { authorizations.Add(1) })
		}
	}()
	for n := range 40 {
		before := authorizations.Load()
		require.Eventually(t, func() bool { return authorizations.Load() > before }, 5*time.Second, time.Millisecond)
		c := w.connect(t, fmt.Sprint("u", n))
		require.Equal(t, "connect", await(t, c)["reply_to"])
	}
}

func TestResume_ASlowResumerDelaysNobodyAndFinishes(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	w.chatted(t)
	w.hub.Shard("chat").Begin(6)
	close(w.known)
	chat := w.owners["chat"]
	release := chat.HangFor("eve") // calls for eve end, with an error, only after release
	eve := w.back(t, "eve", 0)
	<-chat.Hanging()
	for n := range 10 { // while the call for eve is in flight
		c := w.back(t, "bob", 1)
		all, _ := received(t, c)
		require.Equal(t, sixthAndBefore, all)
		require.Equal(t, "connect", await(t, w.connect(t, fmt.Sprint("u", n)))["reply_to"])
	}
	release()
	_, notRecovered := received(t, eve)
	require.Equal(t, "[user:eve]", notRecovered)
}

// Connections are opened and closed while an owner is unavailable. They must not stay in the lanes, which are the
// queues of calls to the owner.
func TestAttach_ClosedConnectionsDoNotWaitForAnOwner(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	close(w.known)
	chat := w.owners["chat"]
	chat.SetAway(true)
	for n := range 2000 {
		c, err := w.hub.Add(fmt.Sprint("u", n), frame.JSON)
		require.NoError(t, err)
		if n%2 == 0 {
			w.rooms.Attach(c)
		} else {
			w.rooms.Resume(c, hub.Progress{"chat": {}, "feed": {}, "notification": {}}, nil, nil)
		}
		w.hub.Remove(c)
	}
	stays := w.connect(t, "bob")
	require.Eventually(t, func() bool { return w.rooms.Waiting("chat") == 1 }, 10*time.Second, time.Millisecond)
	chat.SetAway(false)
	require.Equal(t, "connect", await(t, stays)["reply_to"])
}

// A panic happens while a connection is attached. Only this connection must be closed.
func TestAttach_APanicCostsOneConnection(t *testing.T) {
	t.Parallel()
	w := begin(t, 0)
	c, err := w.hub.Add("eve", frame.JSON)
	require.NoError(t, err)
	c.Greet(func(hub.Greeting) frame.Frame { panic("a fault") })
	w.rooms.Attach(c)
	bob := w.connect(t, "bob")
	close(w.known)
	require.Equal(t, "connect", await(t, bob)["reply_to"])
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection was not closed")
	}
	reason, _ := c.Reason()
	require.Equal(t, hub.Internal, reason)
	n, err := testutil.GatherAndCount(w.counted, "gateway_panics_total")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, "connect", await(t, w.connect(t, "carol"))["reply_to"])
}

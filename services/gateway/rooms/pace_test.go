package rooms

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// A user who resumes again and again gets missed events at a limited rate. Nobody else waits, nor does one who has been
// away for a while.
func TestPace_SpreadsTheReturnsOfOneUser(t *testing.T) {
	t.Parallel()
	var p pace
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	now, given := begun, 0
	for now.Sub(begun) < time.Minute {
		now = now.Add(p.wait("eve", now))
		p.gave("eve", 2000, now)
		given += 2000
		require.Zero(t, p.wait("bob", now))
		now = now.Add(time.Millisecond)
	}
	require.InDelta(t, maxMissed+60*missedRate, given, 2*2000+1)
	p.gave("eve", 1_000_000, now)
	require.Equal(t, maxPace, p.wait("eve", now), "whatever was given, one comes back")
	for n := range 100 {
		p.gave(fmt.Sprint("u", n), 1000, now)
	}
	now = now.Add(time.Hour)
	require.Zero(t, p.wait("eve", now))
	p.gave("bob", 1, now)
	require.Len(t, p.users, 1, "a user who is not limited any more is forgotten")
}

// One who was given more than that does not wait among those who come back, and so delays none of them.
func TestResume_OneWhoWasGivenTooMuchWaitsElsewhere(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	connections := hub.New(hub.Options{Catalog: c})
	r := New(Options{Catalog: c, Hub: connections, Log: slog.New(slog.DiscardHandler)}) // it does not run
	r.asks["chat"].pace.gave("eve", 10*maxMissed, time.Now())
	for user, waiting := range map[string]int{"eve": 0, "bob": 1} {
		conn, err := connections.Add(user)
		require.NoError(t, err)
		before := r.Waiting("chat")
		r.Resume(conn, hub.Mark{"chat": {}}, nil, nil)
		require.Equal(t, waiting, r.Waiting("chat")-before, user)
	}
}

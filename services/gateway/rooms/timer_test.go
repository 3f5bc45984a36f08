package rooms

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// A timer that repeats the call for one connection panics. This connection must be closed, and the process must
// continue.
func TestLater_APanicCostsOneConnection(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	connections := hub.New(hub.Options{Catalog: c})
	r := New(Options{Catalog: c, Hub: connections, Guard: guard.New(log, nil), Log: log})
	eve, err := connections.Add("eve", frame.JSON)
	require.NoError(t, err)
	bob, err := connections.Add("bob", frame.JSON)
	require.NoError(t, err)
	r.asks["chat"].later(1, eve, func() { panic("injected into a timer") })
	select {
	case <-eve.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection was not closed")
	}
	reason, _ := eve.Reason()
	require.Equal(t, hub.Internal, reason)
	require.False(t, bob.Ended())
}

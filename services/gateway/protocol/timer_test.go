package protocol

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

// A timer of a handler panics, such as the timer for the expiry of its token. The handler's connection must be closed,
// and the process must continue.
func TestTimer_APanicCostsOneConnection(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	connections := hub.New(hub.Options{Catalog: c})
	parts := &Parts{Guard: guard.New(slog.New(slog.DiscardHandler), nil)}
	eve, err := connections.Add("eve", frame.JSON)
	require.NoError(t, err)
	bob, err := connections.Add("bob", frame.JSON)
	require.NoError(t, err)
	s := &Handler{parts: parts, conn: eve}
	s.after(0, func() { panic("injected into a timer") })
	select {
	case <-eve.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection was not closed")
	}
	reason, _ := eve.Reason()
	require.Equal(t, hub.Internal, reason)
	require.False(t, bob.Ended())
}

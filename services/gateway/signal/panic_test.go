package signal

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/guard"
)

// A panic happens while a signal from another gateway is delivered. The gateway must count the panic and continue.
func TestDeliver_APanicCostsOneMessage(t *testing.T) {
	t.Parallel()
	declared, err := catalog.Load()
	require.NoError(t, err)
	counted, log := prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	s := New(Options{Catalog: declared, Guard: guard.New(log, counted), Log: log}) // without a hub, each delivery panics
	payload, err := proto.Marshal(&meshv1.Signals{Gateway: "other",
		Signals: []*meshv1.Signal{{Name: "chat.typing", Room: "conversation:g", Actor: "bob"}}})
	require.NoError(t, err)
	s.deliverAll(string(payload))
	n, err := testutil.GatherAndCount(counted, "gateway_panics_total")
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

//go:build integration

package owner

import (
	"math"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// A service runs while its database is restored to a state in which bob has not left a circle yet. Then an operator
// begins a new incarnation. From then on the service must decide on the states that it loads from the log, and not on
// the states that it cached before.
func TestRestored_DecidesOnTheRestoredLog(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	y, other := newToy(t, url, nil), newToy(t, url, nil)
	kept := y.do("ann", &toyv1.OpenCircle{CircleId: "7", Name: "seven", UserIds: []string{"ann", "bob"}}).Position
	lost := y.do("ann", &toyv1.LeaveCircle{CircleId: "7", UserId: "bob"})
	require.Equal(t, envelope.Committed, lost.Kind)
	require.Equal(t, envelope.Unchanged, y.do("ann", &toyv1.LeaveCircle{CircleId: "7", UserId: "bob"}).Kind)
	for _, statement := range []string{
		"DELETE FROM toy.events WHERE position > $1",
		"DELETE FROM toy.event_rooms WHERE position > $1",
		"DELETE FROM toy.outcomes WHERE position > $1",
		"UPDATE toy.memberships SET closed_version = NULL, closed_position = NULL WHERE closed_position > $1",
	} {
		_, err := y.pool.Exec(t.Context(), statement, kept)
		require.NoError(t, err)
	}

	server := httptest.NewServer(second(meshv1connect.NewOperatorServiceHandler(&operator{name: "toy", log: y.log})))
	defer server.Close()
	operator := meshv1connect.NewOperatorServiceClient(server.Client(), server.URL)
	before := y.log.Incarnation()
	begun, err := operator.BeginIncarnation(t.Context(), connect.NewRequest(&meshv1.BeginIncarnationRequest{Seen: 5_000_000}))
	require.NoError(t, err)
	require.Equal(t, before, begun.Msg.GetBefore())
	require.Equal(t, y.log.Incarnation(), begun.Msg.GetIncarnation())
	require.NotEqual(t, before, begun.Msg.GetIncarnation())
	require.EqualValues(t, kept, begun.Msg.GetHead())
	require.Greater(t, begun.Msg.GetFloor(), int64(5_000_000))

	// Another instance appends an event, so that the stream has the same version as before the restore. The first
	// instance must notice nevertheless that its cached state of this version is wrong.
	require.Eventually(t, func() bool { return other.log.Incarnation() == y.log.Incarnation() }, time.Minute, time.Millisecond)
	require.Equal(t, lost.Version, other.do("ann", &toyv1.LeaveCircle{CircleId: "7", UserId: "ann"}).Version)
	again := y.do("ann", &toyv1.LeaveCircle{CircleId: "7", UserId: "bob"})
	require.Equal(t, envelope.Committed, again.Kind)
	require.Equal(t, lost.Version+1, again.Version)
	require.Greater(t, again.Position, begun.Msg.GetFloor())

	for _, seen := range []int64{-1, 1<<53 + 1, math.MaxInt64} {
		_, err = operator.BeginIncarnation(t.Context(), connect.NewRequest(&meshv1.BeginIncarnationRequest{Seen: seen}))
		refused, ok := rpc.Refusal(err)
		require.True(t, ok, "%d: %v", seen, err)
		require.Equal(t, refusal.InvalidField, refused.Code)
		require.Contains(t, refused.Text, "seen has to be a position")
	}
	require.Equal(t, begun.Msg.GetIncarnation(), y.log.Incarnation())
}

package query

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// The field limit of each query is bounded twice: by its declaration, which clients see, and by the number of rows that
// a query reads.
func TestLimits_AreThoseThatTheQueriesDeclare(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	for name := range Projections {
		q, ok := c.Query(name)
		require.True(t, ok, name)
		f := q.Request.Descriptor().Fields().ByName("limit")
		require.NotNil(t, f, name)
		shape := proto.GetExtension(f.Options(), routingv1.E_Shape).(*routingv1.Shape)
		require.EqualValues(t, 1, shape.GetMin(), name)
		require.EqualValues(t, limits.Max, shape.GetMax(), name)
	}
}

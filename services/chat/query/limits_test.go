package query

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// The field limit of a query is bounded twice: by its declaration, which clients see, and by the number of rows that
// the query reads.
func TestLimits_AreThoseThatTheQueriesDeclare(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	bounded := 0
	for _, name := range c.QueryNames() {
		q, _ := c.Query(name)
		f := q.Request.Descriptor().Fields().ByName("limit")
		if q.Owner != "chat" || f == nil {
			continue
		}
		bounded++
		shape := proto.GetExtension(f.Options(), routingv1.E_Shape).(*routingv1.Shape)
		require.EqualValues(t, 1, shape.GetMin(), name)
		require.EqualValues(t, limits.Max, shape.GetMax(), name)
	}
	require.GreaterOrEqual(t, bounded, 3)
}

package feed

import (
	"testing"

	"github.com/stretchr/testify/require"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

func TestAuthorize_AllowsEveryUserAndReturnsNoSnapshot(t *testing.T) {
	t.Parallel()
	got, err := authorize(t.Context(), []*meshv1.Subscription{{User: "bob", Room: "author:ann", Snapshot: true},
		{User: "bob", Room: "post:7", Snapshot: true}})
	require.NoError(t, err)
	require.Len(t, got, 2)
	for _, authorizations := range got {
		require.True(t, authorizations.GetAllowed())
		require.Empty(t, authorizations.GetSnapshot())
	}
}

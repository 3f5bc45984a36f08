package signal

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// A sender has used up its burst when full buckets are removed. The sender's bucket must stay, because a new bucket
// would be full.
func TestBuckets_AreRemovedOnlyWhenFull(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	typing := &catalog.Signal{Name: "chat.typing", Rate: 2}
	now := time.Now()
	for range burst * typing.Rate {
		require.True(t, s.take("connection", typing))
	}
	s.removeFull(now)
	require.False(t, s.take("connection", typing))
	require.Len(t, s.buckets, 1)
	s.removeFull(now.Add(time.Minute))
	require.Empty(t, s.buckets)
}

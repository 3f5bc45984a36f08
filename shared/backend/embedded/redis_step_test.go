package embedded

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRedis_AgesKeysByAtMostASecondAfterASuspend(t *testing.T) {
	t.Parallel()
	now := time.Now()
	require.Equal(t, 250*time.Millisecond, step(now, now.Add(250*time.Millisecond)))
	require.Equal(t, time.Second, step(now, now.Add(8*time.Hour)))
}

package retry_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/retry"
)

func TestBackoff_DoublesUpToItsMaximumAndBeginsAgain(t *testing.T) {
	t.Parallel()
	var b retry.Backoff
	for range 2 {
		for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000} {
			want *= time.Millisecond
			d := b.Next()
			require.GreaterOrEqual(t, d, want*3/4)
			require.LessOrEqual(t, d, want*5/4)
		}
		require.Equal(t, 9, b.Failures)
		b.Reset()
	}
	for range 1000 { // after many failures, the pause must not overflow and become negative
		require.Positive(t, b.Next())
	}
}

func TestBackoff_DelaysDiffer(t *testing.T) {
	t.Parallel()
	seen := map[time.Duration]bool{}
	for range 100 {
		seen[retry.Delay(3, time.Second, time.Minute)] = true
	}
	require.Greater(t, len(seen), 50, "instances that fail together must not try again together")
}

func TestSleep_ReportsThatTheContextEnded(t *testing.T) {
	t.Parallel()
	require.True(t, retry.Sleep(t.Context(), time.Millisecond))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, retry.Sleep(ended, time.Hour))
	require.False(t, (&retry.Backoff{First: time.Hour, Max: time.Hour}).Wait(ended))
	retry.Await(ended, make(chan struct{}), time.Hour)
	signal := make(chan struct{})
	close(signal)
	retry.Await(t.Context(), signal, time.Hour)
}

func TestErrors_AreRecognised(t *testing.T) {
	t.Parallel()
	cause := errors.New("connection refused")
	err := fmt.Errorf("append: %w", retry.Unavailable("postgres", cause))
	require.ErrorIs(t, err, retry.ErrUnavailable)
	require.ErrorIs(t, err, cause)
	require.EqualError(t, err, "append: postgres is unavailable: connection refused")
	require.Equal(t, "postgres", retry.Dependency(err))
	require.False(t, retry.IsPermanent(err))

	err = fmt.Errorf("decode: %w", retry.Permanent(cause))
	require.True(t, retry.IsPermanent(err))
	require.NotErrorIs(t, err, retry.ErrUnavailable)
	require.Equal(t, "dependency", retry.Dependency(err))
}

package eventlog

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func fill(t testing.TB, l *Log, f Fill) {
	t.Helper()
	require.NoError(t, l.FillForTest(t.Context(), f))
}

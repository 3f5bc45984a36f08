//go:build unix

package bus_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func processTime(t testing.TB) time.Duration {
	t.Helper()
	var used syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

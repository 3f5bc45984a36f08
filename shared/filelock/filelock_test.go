package filelock_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/filelock"
)

func TestLock_HasOneHolderAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	require.False(t, filelock.Held(path), "there is no file yet")
	first, err := filelock.Try(path)
	require.NoError(t, err)
	require.True(t, filelock.Held(path))
	_, err = filelock.Try(path)
	require.ErrorIs(t, err, filelock.ErrHeld)
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = filelock.Await(impatient, path)
	require.ErrorIs(t, err, filelock.ErrHeld)

	time.AfterFunc(50*time.Millisecond, first.Release)
	second, err := filelock.Await(t.Context(), path)
	require.NoError(t, err)
	second.Release()
	require.False(t, filelock.Held(path))
	_, err = filelock.Try(filepath.Join(path, "no folder"))
	require.Error(t, err)
	require.NotErrorIs(t, err, filelock.ErrHeld)
}

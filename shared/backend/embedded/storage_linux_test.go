//go:build linux

package embedded_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

// The broker's disk is full. Checks of Kafka must fail, and succeed again once there is space.
func TestKafka_ChecksFailWhileTheDiskIsFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("the test cannot mount a file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	_, k := startKafka(t, embedded.KafkaOptions{Dir: filepath.Join(dir, "kafka")})
	declare(t, k, "topic", time.Hour)
	client, _ := openClients(t, k)
	produce(t, client, "topic", 1, 0)
	require.NoError(t, k.Check(t.Context()))

	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	require.NoError(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.NoError(t, f.Close())
	require.Error(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: "topic", Value: make([]byte, 8192),
		Timestamp: time.Now()}).FirstErr())
	require.Eventually(t, func() bool { err = k.Check(t.Context()); return err != nil }, 10*time.Second, 50*time.Millisecond)
	require.ErrorIs(t, err, kerr.KafkaStorageError)
	require.ErrorContains(t, err, "is its disk full?")

	require.NoError(t, os.Remove(filler))
	require.Eventually(t, func() bool { return k.Check(t.Context()) == nil }, 10*time.Second, 50*time.Millisecond)
	produce(t, client, "topic", 1, 0)
}

// The broker cannot write to its data directory. Checks of Kafka must fail, and succeed again once it can write. This
// test needs no privileges, in contrast to the test with a full disk.
func TestKafka_ChecksFailWhileItCannotWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, k := startKafka(t, embedded.KafkaOptions{Dir: dir})
	require.NoError(t, k.Check(t.Context()))
	obstacle := filepath.Join(dir, "probe")
	full := t.TempDir() // gets a file, because os.Remove in the broker's check would delete an empty folder
	require.NoError(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	require.Eventually(t, func() bool { return os.Rename(full, obstacle) == nil }, 5*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return k.Check(t.Context()) != nil }, 10*time.Second, 50*time.Millisecond)
	require.NoError(t, os.RemoveAll(obstacle))
	require.Eventually(t, func() bool { return k.Check(t.Context()) == nil }, 10*time.Second, 50*time.Millisecond)
}

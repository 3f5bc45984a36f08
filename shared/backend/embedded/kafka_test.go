package embedded_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

func startKafka(t *testing.T, o embedded.KafkaOptions) (*embedded.Kafka, backend.Kafka) {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	k, err := embedded.StartKafka(o)
	require.NoError(t, err)
	t.Cleanup(k.Stop)
	return k, backend.Kafka{Brokers: k.Brokers(), ClientID: "test"}
}

// openClients opens a client that writes to the broker, and an admin client that reads the broker's offsets.
func openClients(t *testing.T, k backend.Kafka) (*kgo.Client, *kadm.Client) {
	t.Helper()
	client, err := kgo.NewClient(append(k.Options(), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RecordDeliveryTimeout(0))...) // the timeout would count from the records' timestamps, which may be old
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client, kadm.NewClient(client)
}

// produce sends records and waits until they are acknowledged. The parameter age is the age of the records by their
// timestamps.
func produce(t *testing.T, client *kgo.Client, topic string, count int, age time.Duration) {
	t.Helper()
	for i := range count {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(strconv.Itoa(i)),
			Timestamp: time.Now().Add(-age)}).FirstErr())
	}
}

func oldestOffset(t *testing.T, admin *kadm.Client, topic string) int64 {
	t.Helper()
	all, err := admin.ListStartOffsets(t.Context(), topic)
	require.NoError(t, err)
	require.NoError(t, all.Error())
	return all[topic][0].Offset
}

func endOffset(t *testing.T, admin *kadm.Client, topic string) int64 {
	t.Helper()
	all, err := admin.ListEndOffsets(t.Context(), topic)
	require.NoError(t, err)
	require.NoError(t, all.Error())
	return all[topic][0].Offset
}

func commit(t *testing.T, admin *kadm.Client, group, topic string, at int64) {
	t.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(topic, 0, at, -1)
	require.NoError(t, admin.CommitAllOffsets(t.Context(), group, offsets))
}

func declare(t *testing.T, k backend.Kafka, name string, retention time.Duration) {
	t.Helper()
	differences, err := k.EnsureTopics(t.Context(),
		[]catalog.Topic{{Name: name, Owner: "chat", Partitions: 1, Retention: retention}})
	require.NoError(t, err)
	require.Empty(t, differences)
}

func TestKafka_AKillLosesNoAcknowledgedRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	process := startProcess(t, "kafka", dir)
	k := backend.Kafka{Brokers: []string{process.line(t)}, ClientID: "test"}
	declare(t, k, "kept", time.Hour)
	client, admin := openClients(t, k)
	produce(t, client, "kept", 100, 0)
	commit(t, admin, "readers", "kept", 40)

	process.kill(t)
	_, k = startKafka(t, embedded.KafkaOptions{Dir: dir})
	_, admin = openClients(t, k)
	require.EqualValues(t, 100, endOffset(t, admin, "kept"))
	offsets, err := admin.FetchOffsets(t.Context(), "readers")
	require.NoError(t, err)
	kept, ok := offsets.Lookup("kept", 0)
	require.True(t, ok)
	require.EqualValues(t, 40, kept.At)
	declare(t, k, "kept", time.Hour) // fails if the topic's retention was not stored
}

func TestKafka_DeletesExpiredRecordsThatAllGroupsHaveRead(t *testing.T) {
	t.Parallel()
	o := embedded.KafkaOptions{Dir: t.TempDir(), DeleteEvery: 20 * time.Millisecond}
	running, k := startKafka(t, o)
	declare(t, k, "old", time.Minute)
	declare(t, k, "young", time.Minute)
	client, admin := openClients(t, k)
	commit(t, admin, "slow", "old", 0) // each group must have an offset before any record expires
	commit(t, admin, "quick", "old", 0)
	produce(t, client, "young", 3, 0)
	produce(t, client, "old", 10, time.Hour)
	commit(t, admin, "quick", "old", 9)
	commit(t, admin, "slow", "old", 4)

	oldest := func(n int64) func() bool {
		return func() bool { return oldestOffset(t, admin, "old") == n }
	}
	require.Eventually(t, oldest(4), 5*time.Second, 10*time.Millisecond, "up to the offset of the slow group")
	commit(t, admin, "slow", "old", 10)
	require.Eventually(t, oldest(9), 5*time.Second, 10*time.Millisecond, "up to the last record")
	require.Zero(t, oldestOffset(t, admin, "young"))
	require.EqualValues(t, 10, endOffset(t, admin, "old"))

	// After a restart, new records get the next offsets, and expired records are still deleted.
	running.Stop()
	_, k = startKafka(t, o)
	client, admin = openClients(t, k)
	require.EqualValues(t, 10, endOffset(t, admin, "old"))
	produce(t, client, "old", 2, time.Hour)
	require.EqualValues(t, 12, endOffset(t, admin, "old"))
	// The group "quick" has read only up to offset 9, so the records from 9 on must not be deleted yet.
	require.Eventually(t, oldest(9), 5*time.Second, 10*time.Millisecond)
	commit(t, admin, "slow", "old", 12)
	commit(t, admin, "quick", "old", 12)
	require.Eventually(t, oldest(11), 5*time.Second, 10*time.Millisecond)
}

func TestKafka_DeletesNoRecordsThatAGroupHasNotRead(t *testing.T) {
	t.Parallel()
	_, k := startKafka(t, embedded.KafkaOptions{DeleteEvery: 5 * time.Millisecond})
	declare(t, k, "read", time.Millisecond)
	client, admin := openClients(t, k)
	commit(t, admin, "readers", "read", 0)
	for at := int64(0); at < 60; at += 3 {
		produce(t, client, "read", 5, time.Hour)
		require.LessOrEqual(t, oldestOffset(t, admin, "read"), at)
		commit(t, admin, "readers", "read", at+3)
	}
}

func TestKafka_StoresARetentionThatIsSetLater(t *testing.T) {
	t.Parallel()
	_, k := startKafka(t, embedded.KafkaOptions{})
	declare(t, k, "changed", time.Hour)
	_, admin := openClients(t, k)
	hours, ms := 48*time.Hour, strconv.FormatInt((48*time.Hour).Milliseconds(), 10)
	setting := []kadm.AlterConfig{{Name: "retention.ms", Value: &ms}}
	altered, err := admin.AlterTopicConfigs(t.Context(), setting, "changed")
	require.NoError(t, err)
	require.NoError(t, altered[0].Err)
	declare(t, k, "changed", hours)
	altered, err = admin.AlterTopicConfigsState(t.Context(), setting, "changed")
	require.NoError(t, err)
	require.NoError(t, altered[0].Err)
	declare(t, k, "changed", hours)

	described, err := admin.DescribeTopicConfigs(t.Context(), "changed")
	require.NoError(t, err)
	own, err := described.On("changed", nil)
	require.NoError(t, err)
	for _, c := range own.Configs {
		if c.Key == "retention.ms" {
			require.Equal(t, "-1", c.MaybeValue())
		}
	}
}

func TestKafka_RefusesASecondStartOnItsDataAndAPortInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, k := startKafka(t, embedded.KafkaOptions{Dir: dir})
	_, err := embedded.StartKafka(embedded.KafkaOptions{Dir: dir})
	require.ErrorContains(t, err, fmt.Sprintf("%s: it is in use by process %d", dir, os.Getpid()))

	_, port, err := splitPort(k.Brokers[0])
	require.NoError(t, err)
	_, err = embedded.StartKafka(embedded.KafkaOptions{Dir: filepath.Join(dir, "other"), Port: port})
	require.ErrorContains(t, err, fmt.Sprintf("port %d of 127.0.0.1 is in use", port))
	require.NoError(t, k.Check(context.Background()))
}

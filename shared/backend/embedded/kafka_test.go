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

	"github.com/IBM/sarama"
	"github.com/stretchr/testify/require"

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

// reach opens what a test looks with.
func reach(t *testing.T, k backend.Kafka) (sarama.Client, sarama.ClusterAdmin) {
	t.Helper()
	client, err := sarama.NewClient(k.Brokers, k.SaramaConfig())
	require.NoError(t, err)
	admin, err := sarama.NewClusterAdminFromClient(client)
	require.NoError(t, err)
	t.Cleanup(func() { _ = admin.Close() }) // its broker may be gone by then
	return client, admin
}

// produce sends records that were made some time ago, and is told that they were taken.
func produce(t *testing.T, client sarama.Client, topic string, count int, age time.Duration) {
	t.Helper()
	producer, err := sarama.NewSyncProducerFromClient(client)
	require.NoError(t, err)
	for i := range count {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Partition: 0,
			Value: sarama.StringEncoder(strconv.Itoa(i)), Timestamp: time.Now().Add(-age)})
		require.NoError(t, err)
	}
	require.NoError(t, producer.Close())
}

func offset(t *testing.T, client sarama.Client, topic string, which int64) int64 {
	t.Helper()
	n, err := client.GetOffset(topic, 0, which)
	require.NoError(t, err)
	return n
}

func commit(t *testing.T, admin sarama.ClusterAdmin, group, topic string, at int64) {
	t.Helper()
	_, err := admin.AlterConsumerGroupOffsets(group,
		map[string]map[int32]sarama.OffsetAndMetadata{topic: {0: {Offset: at}}}, nil)
	require.NoError(t, err)
}

func declare(t *testing.T, k backend.Kafka, name string, retention time.Duration) {
	t.Helper()
	differences, err := k.EnsureTopics(t.Context(),
		[]catalog.Topic{{Name: name, Owner: "chat", Partitions: 1, Retention: retention}})
	require.NoError(t, err)
	require.Empty(t, differences)
}

func TestKafka_KeepsAcknowledgedRecordsOverItsSuddenDeath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	process := startProcess(t, "kafka", dir)
	k := backend.Kafka{Brokers: []string{process.line(t)}, ClientID: "test"}
	declare(t, k, "kept", time.Hour)
	client, admin := reach(t, k)
	produce(t, client, "kept", 100, 0)
	commit(t, admin, "readers", "kept", 40)

	process.kill(t)
	_, k = startKafka(t, embedded.KafkaOptions{Dir: dir})
	client, admin = reach(t, k)
	require.EqualValues(t, 100, offset(t, client, "kept", sarama.OffsetNewest))
	offsets, err := admin.ListConsumerGroupOffsets("readers", nil)
	require.NoError(t, err)
	require.EqualValues(t, 40, offsets.GetBlock("kept", 0).Offset)
	declare(t, k, "kept", time.Hour) // without a difference: what retention was asked for is kept as well
}

func TestKafka_DeletesWhatIsPastItsRetentionUpToWhatGroupsHaveRead(t *testing.T) {
	t.Parallel()
	o := embedded.KafkaOptions{Dir: t.TempDir(), DeleteEvery: 20 * time.Millisecond}
	running, k := startKafka(t, o)
	declare(t, k, "old", time.Minute)
	declare(t, k, "young", time.Minute)
	client, admin := reach(t, k)
	commit(t, admin, "slow", "old", 0) // before there is anything to delete
	commit(t, admin, "quick", "old", 0)
	produce(t, client, "young", 3, 0)
	produce(t, client, "old", 10, time.Hour)
	commit(t, admin, "quick", "old", 9)
	commit(t, admin, "slow", "old", 4)

	oldest := func(n int64) func() bool {
		return func() bool { return offset(t, client, "old", sarama.OffsetOldest) == n }
	}
	require.Eventually(t, oldest(4), 5*time.Second, 10*time.Millisecond, "up to what the slow group has read")
	commit(t, admin, "slow", "old", 10)
	require.Eventually(t, oldest(9), 5*time.Second, 10*time.Millisecond, "and up to the last record")
	require.Zero(t, offset(t, client, "young", sarama.OffsetOldest))
	require.EqualValues(t, 10, offset(t, client, "old", sarama.OffsetNewest))

	// Offsets go on after a restart, and so does what deletes.
	running.Stop()
	_, k = startKafka(t, o)
	client, _ = reach(t, k)
	require.EqualValues(t, 10, offset(t, client, "old", sarama.OffsetNewest))
	produce(t, client, "old", 2, time.Hour)
	require.EqualValues(t, 12, offset(t, client, "old", sarama.OffsetNewest))
	// The slow group has read up to 10, so far may it go.
	require.Eventually(t, oldest(9), 5*time.Second, 10*time.Millisecond)
	_, admin = reach(t, k)
	commit(t, admin, "slow", "old", 12)
	commit(t, admin, "quick", "old", 12)
	require.Eventually(t, oldest(11), 5*time.Second, 10*time.Millisecond)
}

func TestKafka_NeverPassesAGroupThatIsBehind(t *testing.T) {
	t.Parallel()
	_, k := startKafka(t, embedded.KafkaOptions{DeleteEvery: 5 * time.Millisecond})
	declare(t, k, "read", time.Millisecond)
	client, admin := reach(t, k)
	commit(t, admin, "readers", "read", 0)
	for at := int64(0); at < 60; at += 3 {
		produce(t, client, "read", 5, time.Hour)
		require.LessOrEqual(t, offset(t, client, "read", sarama.OffsetOldest), at)
		commit(t, admin, "readers", "read", at+3)
	}
}

func TestKafka_RemembersARetentionThatIsSetLater(t *testing.T) {
	t.Parallel()
	_, k := startKafka(t, embedded.KafkaOptions{})
	declare(t, k, "changed", time.Hour)
	_, admin := reach(t, k)
	hours, ms := 48*time.Hour, strconv.FormatInt((48*time.Hour).Milliseconds(), 10)
	require.NoError(t, admin.IncrementalAlterConfig(sarama.TopicResource, "changed",
		map[string]sarama.IncrementalAlterConfigsEntry{"retention.ms": {Operation: sarama.IncrementalAlterConfigsOperationSet,
			Value: &ms}}, false))
	declare(t, k, "changed", hours)
	require.NoError(t, admin.AlterConfig(sarama.TopicResource, "changed", map[string]*string{"retention.ms": &ms}, false))
	declare(t, k, "changed", hours)

	described, err := admin.DescribeConfigs([]*sarama.ConfigResource{{Type: sarama.TopicResource, Name: "changed",
		ConfigNames: []string{"retention.ms"}}}, sarama.DescribeConfigsOptions{})
	require.NoError(t, err)
	require.Equal(t, "-1", described[0].Configs[0].Value)
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

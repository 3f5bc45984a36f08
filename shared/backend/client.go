package backend

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	firstRetry     = 100 * time.Millisecond
	maxRetry       = 250 * time.Millisecond
	maxRetries     = 8
	connectTimeout = 3 * time.Second
	requestTimeout = 30 * time.Second

	// FetchWait is how long a broker waits for records if a fetch finds none. New records end the wait at once, so
	// FetchWait adds no latency.
	FetchWait = 5 * time.Second
	// produceWait is how long a broker waits for other brokers to store their replicas of a record.
	produceWait = 5 * time.Second
)

// Options returns the settings that all Kafka clients of the mesh share, unless a client overrides one. The retries and
// timeouts of connecting and of requests are those of the Node services that the mesh replaces (docs/configuration.md,
// "What is fixed"): first retry after 100 ms, 8 retries, connect timeout 3 s, request timeout 30 s. The request timeout
// applies to fetching and producing; for most other requests it is 25 s.
func (k Kafka) Options() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(k.Brokers...),
		kgo.ClientID(k.ClientID),
		kgo.DialTimeout(connectTimeout),
		// A request times out after this overhead plus the time limit that the request itself contains. The limit of a fetch
		// is FetchWait, so a fetch times out after requestTimeout. Most other requests contain no limit.
		kgo.RequestTimeoutOverhead(requestTimeout - FetchWait),
		kgo.RequestRetries(maxRetries),
		kgo.RetryBackoffFn(retryPause),
		// Brokers close connections that are idle for ten minutes, so the client closes them earlier.
		kgo.ConnIdleTimeout(5 * time.Minute),
		// Partitions that are added to a topic are noticed within this time.
		kgo.MetadataMaxAge(5 * time.Second),
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.DisableClientMetrics(),

		// An acknowledged record is on every in-sync replica. The producer is idempotent, so the client's own retries neither
		// repeat nor reorder records. Nothing is compressed: within one machine or network, processor time is scarcer than
		// bandwidth.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(1 << 20), // the brokers' default limit
		kgo.ProducerLinger(0),
		kgo.ProduceRequestTimeout(produceWait),
		kgo.RecordRetries(maxRetries),
		kgo.RecordDeliveryTimeout(2 * time.Second),
		// Publishing has to end within a bounded time, even if a record can then be stored twice: the caller
		// publishes failed records again, and consumers accept repeats.
		kgo.AllowIdempotentProduceCancellation(),

		kgo.FetchMaxWait(FetchWait),
		kgo.FetchMaxBytes(16 << 20),
		kgo.FetchMaxPartitionBytes(512 << 10),
		// If a partition does not have the offset that a consumer requests, the consumer continues with the oldest
		// record, never with the newest.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
}

// retryPause returns the delay before the nth retry in a row, counted from 1: 100 ms, then 200 ms, and 250 ms from then
// on, with a random jitter of plus or minus a quarter.
func retryPause(n int) time.Duration {
	return retry.Delay(n, firstRetry, maxRetry)
}

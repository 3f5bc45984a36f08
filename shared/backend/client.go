package backend

import (
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	firstRetry     = 100 * time.Millisecond
	maxRetry       = 250 * time.Millisecond
	maxRetries     = 8
	connectTimeout = 3 * time.Second
	requestTimeout = 30 * time.Second

	// FetchWait is how long a broker holds a fetch for which it has no records. Records end the wait, so it costs no
	// latency.
	FetchWait = 5 * time.Second
	// produceWait is how long a broker waits for its replicas.
	produceWait = 5 * time.Second
)

// Options returns the settings with which every client of the mesh starts. They are those of existing installations:
// first retry after 100 ms, 8 retries, connect timeout 3 s, request timeout 30 s.
func (k Kafka) Options() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(k.Brokers...),
		kgo.ClientID(k.ClientID),
		kgo.DialTimeout(connectTimeout),
		// The overhead is added to the time that a broker may take by the request itself.
		kgo.RequestTimeoutOverhead(requestTimeout - FetchWait),
		kgo.RequestRetries(maxRetries),
		kgo.RetryBackoffFn(retryPause),
		// Brokers close connections that idle for ten minutes.
		kgo.ConnIdleTimeout(5 * time.Minute),
		// Partitions that are added to a topic are noticed within this time.
		kgo.MetadataMaxAge(5 * time.Second),
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.DisableClientMetrics(),

		// An acknowledged record is on every in-sync replica, once, in order. Nothing is compressed: between processes of
		// one machine or one network the processor is what is scarce.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(1 << 20), // as brokers take it by default
		kgo.ProducerLinger(0),
		kgo.ProduceRequestTimeout(produceWait),
		kgo.RecordRetries(maxRetries),
		kgo.RecordDeliveryTimeout(2 * time.Second),
		// A call that fails is repeated by its caller, and consumers take repeats: time bounds matter more.
		kgo.AllowIdempotentProduceCancellation(),

		kgo.FetchMaxWait(FetchWait),
		kgo.FetchMaxBytes(16 << 20),
		kgo.FetchMaxPartitionBytes(512 << 10),
		// Offsets that a topic no longer has give way to its oldest record, never to its newest.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
}

// retryPause is the wait before the nth retry in a row: 100 ms, then up to 250 ms, varied by a quarter.
func retryPause(n int) time.Duration {
	d := min(firstRetry<<max(0, min(n-1, 8)), maxRetry)
	return d*3/4 + rand.N(d/2)
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/retry"
)

// ReaderOptions configure a Reader. A zero value stands for the default.
type ReaderOptions struct {
	// From returns the offset at which to begin. The parameter oldest is the offset of the oldest record, and the
	// parameter end is the offset that the next record will get. If the result is outside this range, the Reader begins
	// at the nearer of the two offsets. The default is end-1, the offset of the last record. From is called for each
	// partition that exists when Read or Subscribe first finds the topic. Partitions that are added later are read from
	// their beginning.
	From func(topic string, partition int32, oldest, end int64) int64
	// Hold is called before each message is delivered. The message is delivered when Hold returns. Tests use this to
	// delay a partition. Hold must return when ctx ends.
	Hold func(ctx context.Context, topic string, partition int32)
	// Drain is how long the Reader waits for messages in flight when a subscription ends; default 10 s. It does not
	// bound handlers of Read.
	Drain time.Duration
	// Backoff is the first delay before a message that was not acknowledged is delivered again; default 100 ms. Later
	// delays double, up to 50 times the first one.
	Backoff time.Duration
	Log     *slog.Logger
}

// Reader reads every partition of topics without a consumer group, each partition in order. It tracks its offsets
// itself, so it continues after any failure of the brokers. If a partition no longer has the Reader's offset, because
// records were deleted or lost, the Reader continues with the oldest record and logs a warning. The positions in the
// records (see envelope.Event) show which records are repeats and which are missing. Two calls of a Reader must not
// read the same topic at the same time. It also implements Watermill's Subscriber.
type Reader struct {
	kafka   backend.Kafka
	options ReaderOptions
	subscriptions

	mu      sync.Mutex
	users   int
	fetcher *fetcher
	polling sync.WaitGroup
	stop    context.CancelFunc
}

// partitionPoll is how often a Reader looks for additional partitions of its topics.
const partitionPoll = 3 * time.Second

// NewReader returns a Reader, which connects when the first topic is read.
func NewReader(k backend.Kafka, o ReaderOptions) (*Reader, error) {
	if len(k.Brokers) == 0 {
		return nil, errors.New("reader: no brokers are configured")
	}
	if o.From == nil {
		o.From = func(_ string, _ int32, _, end int64) int64 { return end - 1 }
	}
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	if o.Backoff == 0 {
		o.Backoff = firstPause
	}
	o.Log = logger(o.Log)
	return &Reader{kafka: k, options: o, subscriptions: newSubscriptions()}, nil
}

// Read calls the function handle for each record of the topics until ctx ends or the Reader is closed, and returns when
// all these calls have returned. It passes the records of one partition one after another, and records of different
// partitions concurrently. The Record is valid only during the call; its bytes are valid for as long as they are
// referenced (see Record). A call that blocks delays its own partition only. The context of the calls ends when ctx
// ends or the Reader is closed.
func (r *Reader) Read(ctx context.Context, topics []string, handle func(ctx context.Context, record *Record)) error {
	done := make(chan struct{})
	err := r.begin(ctx, func(ctx context.Context) {
		defer close(done)
		r.read(ctx, topics, func(ctx context.Context, record *Record) bool {
			if r.options.Hold != nil {
				if r.options.Hold(ctx, record.Topic, record.Partition); ctx.Err() != nil {
					return false
				}
			}
			handle(ctx, record)
			return true
		})
	})
	if err != nil {
		return fmt.Errorf("read %v: %w", topics, err)
	}
	<-done
	return nil
}

// Subscribe reads a topic until ctx ends or the Reader is closed, one message of a partition at a time. The contexts
// of messages have the values of ctx, but do not end with ctx, so that the handlers of messages in flight can finish.
func (r *Reader) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	err := r.begin(ctx, func(ctx context.Context) {
		defer close(out)
		r.read(ctx, []string{topic}, func(ctx context.Context, record *Record) bool { return r.deliver(ctx, *record, out) })
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	return out, nil
}

// read reads all partitions of topics, including those that are added later.
func (r *Reader) read(ctx context.Context, topics []string, handle func(context.Context, *Record) bool) {
	f, err := r.enter()
	if err != nil {
		r.options.Log.Error("reading failed", "topics", topics, "error", err)
		return
	}
	defer r.leave()
	var reading sync.WaitGroup
	defer reading.Wait()
	followed := map[topicPartition]*follower{}
	defer func() { r.release(f, followed) }()

	admin, throttled, again := kadm.NewClient(f.client), newThrottledLogger(r.options.Log), retry.Backoff{}
	begun := map[string]bool{} // topics whose partitions were found before
	for ctx.Err() == nil {
		missing := false
		for _, topic := range topics {
			found, err := r.followNew(ctx, admin, f, topic, begun[topic], followed, handle)
			if err != nil && ctx.Err() == nil {
				throttled.warn("reading "+topic+" failed, retrying", err)
				missing = true
			}
			begun[topic] = begun[topic] || err == nil
			for _, f := range found {
				reading.Go(func() { f.run(ctx) })
			}
		}
		if missing {
			again.Wait(ctx)
			continue
		}
		again.Reset()
		retry.Sleep(ctx, partitionPoll)
	}
}

// followNew starts to read the partitions of a topic that are not read yet. If the parameter later is true, it begins
// with a partition's oldest record; otherwise it begins at the offset of ReaderOptions.From. The result found contains
// a follower for each partition that followNew has started to read; the caller runs these followers.
func (r *Reader) followNew(ctx context.Context, admin *kadm.Client, f *fetcher, topic string, later bool,
	followed map[topicPartition]*follower, handle func(context.Context, *Record) bool) (found []*follower, err error) {
	name := r.kafka.Topic(topic)
	n, err := partitionsOf(ctx, f.client, name)
	if err != nil {
		return nil, err
	}
	var fresh []topicPartition
	for p := range n {
		if at := (topicPartition{name, p}); followed[at] == nil {
			fresh = append(fresh, at)
		}
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	all, err := ranges(ctx, admin, name)
	if err != nil {
		return nil, err
	}
	if newest := fresh[len(fresh)-1].partition; int(newest) >= len(all) {
		return nil, fmt.Errorf("the broker has no offsets of partition %d of %s yet", newest, name)
	}
	offsets := map[int32]kgo.Offset{}
	for _, at := range fresh {
		stored := all[at.partition]
		from := stored.Oldest
		if !later {
			from = min(max(r.options.From(topic, at.partition, stored.Oldest, stored.End), stored.Oldest), stored.End)
		}
		offsets[at.partition] = kgo.NewOffset().At(from)
		own := newFollower(f, at, topic, handle)
		followed[at] = own
		found = append(found, own)
		f.do(func() { f.add(at, own) })
	}
	f.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{name: maps.Clone(offsets)})
	f.do(func() {
		for p, from := range offsets {
			f.begin(topicPartition{name, p}, from.EpochOffset().Offset)
		}
	})
	return found, nil
}

// release ends the fetching of the followed partitions.
func (r *Reader) release(f *fetcher, followed map[topicPartition]*follower) {
	all := map[string][]int32{}
	f.do(func() {
		for at := range followed {
			f.remove(at)
			all[at.topic] = append(all[at.topic], at.partition)
		}
	})
	f.client.RemoveConsumePartitions(all)
}

// enter registers a use of the Reader. The first use creates the client and starts the fetcher.
func (r *Reader) enter() (*fetcher, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users == 0 {
		client, err := newClient(r.kafka, r.options.Log, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{}),
			// The Reader itself looks for new partitions, so the client may refresh its metadata less often.
			kgo.MetadataMaxAge(time.Minute))
		if err != nil {
			return nil, err
		}
		var ctx context.Context
		ctx, r.stop = context.WithCancel(context.Background())
		f := newFetcher(client, 0, r.options.Log)
		r.fetcher = f
		r.polling.Go(func() { f.run(ctx) })
	}
	r.users++
	return r.fetcher, nil
}

// leave ends a use of the Reader. After the last use, it stops the fetcher and closes the client.
func (r *Reader) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users--; r.users == 0 {
		r.stop()
		r.polling.Wait()
		r.fetcher.client.Close()
		r.fetcher = nil
	}
}

// deliver delivers a record again and again until the handler acknowledges it. The result is false if ctx ends first.
func (r *Reader) deliver(ctx context.Context, record Record, out chan<- *message.Message) bool {
	for tries := 0; ; tries++ {
		if tries > 0 && !sleep(pause(r.options.Backoff, tries), ctx.Done(), nil) {
			return false
		}
		if r.options.Hold != nil {
			r.options.Hold(ctx, record.Topic, record.Partition)
		}
		if ctx.Err() != nil {
			return false
		}
		if settled, acked := r.await(ctx, record, out); settled {
			return acked
		}
	}
}

// await delivers a record once and waits for the handler. The result settled is false if the handler has rejected the
// record before ctx ended, so that the record must be delivered again. The result acked is true if the handler has
// acknowledged the record before ctx ended.
func (r *Reader) await(ctx context.Context, record Record, out chan<- *message.Message) (settled, acked bool) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	d := &delivery{Context: own, record: record, over: ctx.Done()}
	m := record.Message(d)
	select {
	case out <- m:
	case <-ctx.Done():
		return true, false
	}
	select {
	case <-m.Acked():
		return true, true
	case <-m.Nacked():
		return false, false
	case <-ctx.Done():
	}
	t := time.NewTimer(r.options.Drain)
	defer t.Stop()
	select {
	case <-m.Acked():
	case <-m.Nacked():
	case <-t.C:
	}
	return true, false
}

package bus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/backend"
)

// ReaderOptions of a Reader. Zero values are the defaults.
type ReaderOptions struct {
	// From says where to begin, given the offset of the oldest record and the one that the next record will get. By
	// default that is end-1, the last record. It is asked once for each partition; those that a topic is given later
	// are read from their beginning.
	From func(topic string, partition int32, oldest, end int64) int64
	// Hold is called before each message is handed out, which waits for it: tests hold back a partition by it. It has
	// to return when ctx ends.
	Hold func(ctx context.Context, topic string, partition int32)
	// Drain is how long messages in flight are waited for at the end; 10 s.
	Drain time.Duration
	// Backoff is the pause before a message that was not acknowledged comes again, at first; 100 ms.
	Backoff time.Duration
	Log     *slog.Logger
}

// Reader is Watermill's Subscriber without a consumer group: it reads every partition, each in order, one message at a
// time. Where it stands it knows itself, over whatever happens to the brokers. An offset that a topic does not have any
// more gives way to the nearest that exists; what is missing then is found by the positions in the records. A topic is
// subscribed to once at a time.
type Reader struct {
	kafka   backend.Kafka
	options ReaderOptions
	source  *source
	subscriptions
}

// NewReader makes a Reader. It connects when something is subscribed to.
func NewReader(k backend.Kafka, o ReaderOptions) (*Reader, error) {
	if o.From == nil {
		o.From = func(_ string, _ int32, _, end int64) int64 { return end - 1 }
	}
	if o.Hold == nil {
		o.Hold = func(context.Context, string, int32) {}
	}
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	if o.Backoff == 0 {
		o.Backoff = firstPause
	}
	o.Log = logger(o.Log)
	c := consumerConfig(k)
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("reader: %w", err)
	}
	return &Reader{kafka: k, options: o, source: &source{brokers: k.Brokers, config: c},
		subscriptions: newSubscriptions()}, nil
}

// Subscribe reads a topic until ctx ends or the Reader is closed. Messages' contexts have the values of ctx, but
// outlast it: first what is in flight is waited for.
func (r *Reader) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	err := r.begin(ctx, func(ctx context.Context) {
		defer close(out)
		r.source.enter()
		defer r.source.leave()
		r.run(ctx, topic, out)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	return out, nil
}

// run reads all partitions of a topic, also those that it is given later.
func (r *Reader) run(ctx context.Context, topic string, out chan<- *message.Message) {
	const lookAgain = time.Minute
	log := r.options.Log.With("topic", topic)
	trouble := newGrumble(log)
	again := backoff{first: firstPause}
	var reading sync.WaitGroup
	defer reading.Wait()
	known := map[int32]bool{}
	for ctx.Err() == nil {
		partitions, err := r.source.partitions(r.kafka.Topic(topic))
		if err != nil {
			trouble.warn("does not read, trying again", err)
			sleep(again.next(), ctx.Done(), nil)
			continue
		}
		later := len(known) > 0
		for _, p := range partitions {
			if known[p] {
				continue
			}
			known[p] = true
			f := &follower{reader: r, topic: topic, partition: p, later: later, out: out, log: log.With("partition", p)}
			reading.Go(func() { f.run(ctx) })
		}
		again.tries = 0
		sleep(lookAgain, ctx.Done(), nil)
	}
}

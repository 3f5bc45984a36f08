package bus

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// A partition is paused when its follower's queue has more than maxQueuedBytes, and resumed when at most
	// resumeQueuedBytes are left.
	maxQueuedBytes    = 8 << 20
	resumeQueuedBytes = maxQueuedBytes / 4
)

// follower passes one partition's records to its handler in order, one after another.
type follower struct {
	fetcher *fetcher
	at      topicPartition
	topic   string // without the installation's prefix
	handle  func(context.Context, *Record) bool

	wake chan struct{} // has room for one signal

	mu    sync.Mutex
	queue [][]*kgo.Record
	bytes int
	full  bool
}

func newFollower(f *fetcher, at topicPartition, topic string, handle func(context.Context, *Record) bool) *follower {
	return &follower{fetcher: f, at: at, topic: topic, handle: handle, wake: make(chan struct{}, 1)}
}

func (f *follower) restart() {}

func (f *follower) take(records []*kgo.Record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, records)
	f.bytes += sizeOf(records)
	f.full = f.bytes > maxQueuedBytes
	select {
	case f.wake <- struct{}{}:
	default:
	}
	return f.full
}

func (f *follower) next() (records []*kgo.Record, open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return nil, false
	}
	records = f.queue[0]
	f.queue[0] = nil
	f.queue = f.queue[1:]
	f.bytes -= sizeOf(records)
	if open = f.full && f.bytes <= resumeQueuedBytes; open {
		f.full = false
	}
	return records, open
}

// run passes records to the handler until ctx ends or the handler returns false.
func (f *follower) run(ctx context.Context) {
	var r Record
	for {
		records, open := f.next()
		if open {
			f.fetcher.open(f.at, f)
		}
		if len(records) == 0 {
			select {
			case <-f.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		for i, from := range records {
			if ctx.Err() != nil {
				return
			}
			r = recordOf(f.topic, from)
			r.Ahead = records[i+1:]
			if !f.handle(ctx, &r) {
				return
			}
		}
	}
}

func sizeOf(records []*kgo.Record) (n int) {
	const record = 200 // approximate memory of a record in addition to its bytes
	for _, r := range records {
		n += record + len(r.Key) + len(r.Value)
		for i := range r.Headers {
			n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
		}
	}
	return n
}

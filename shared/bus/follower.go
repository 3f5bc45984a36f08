package bus

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// A follower that has this many bytes before it gets no more until it has a quarter of them left.
	maxFollowed  = 8 << 20
	moreFollowed = maxFollowed / 4
)

// follower hands out one partition's records in order, one after the other.
type follower struct {
	fetcher *fetcher
	at      place
	topic   string // without the installation's prefix
	handle  func(context.Context, *Record) bool

	wake chan struct{} // takes one

	mu    sync.Mutex
	queue [][]*kgo.Record
	bytes int
	full  bool
}

func newFollower(f *fetcher, at place, topic string, handle func(context.Context, *Record) bool) *follower {
	return &follower{fetcher: f, at: at, topic: topic, handle: handle, wake: make(chan struct{}, 1)}
}

func (f *follower) restart() {}

func (f *follower) take(records []*kgo.Record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, records)
	f.bytes += sizeOf(records)
	f.full = f.bytes > maxFollowed
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
	if open = f.full && f.bytes <= moreFollowed; open {
		f.full = false
	}
	return records, open
}

// run hands out until ctx ends or handle does not want to go on.
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
		for _, from := range records {
			if ctx.Err() != nil {
				return
			}
			r = recordOf(f.topic, from)
			if !f.handle(ctx, &r) {
				return
			}
		}
	}
}

func sizeOf(records []*kgo.Record) (n int) {
	const record = 200 // what a record takes beside its bytes
	for _, r := range records {
		n += record + len(r.Key) + len(r.Value)
		for i := range r.Headers {
			n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
		}
	}
	return n
}
